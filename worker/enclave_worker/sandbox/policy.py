"""Which system calls a guest may make and which not, and why of each. `seccomp` makes the filter of it.

A call that stands in neither list, or that no table of ours knows, does not exist for a guest (ENOSYS). Some of those
that are allowed are looked at more closely: see `seccomp.BY_ARGUMENT`.
"""

from __future__ import annotations

ALLOWED: dict[str, str] = {
    "Descriptors: a sandbox starts with four, and they are its own.": """read write readv writev pread64 pwrite64 preadv
        pwritev preadv2 pwritev2 lseek sendfile copy_file_range close close_range dup dup2 dup3 fcntl ioctl pipe pipe2
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
        eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime""",
    "Files: mounts decide what a path leads to, Landlock what may be done there.": """open openat openat2 creat access
        faccessat faccessat2 stat fstat lstat newfstatat statx statfs fstatfs getdents getdents64 getcwd chdir fchdir
        mkdir mkdirat rmdir rename renameat renameat2 link linkat unlink unlinkat symlink symlinkat readlink readlinkat
        chmod fchmod fchmodat fchmodat2 mknod mknodat truncate ftruncate fallocate fadvise64 readahead flock fsync
        fdatasync sync_file_range utime utimes utimensat futimesat umask cachestat""",
    "Extended attributes: those that matter need capabilities; the rest are a tmpfs file's own.": """setxattr lsetxattr
        fsetxattr setxattrat getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat
        removexattr lremovexattr fremovexattr removexattrat""",
    "Memory: of this process, and limited.": """brk mmap munmap mremap mprotect madvise mincore msync mlock munlock
        munlockall mseal membarrier pkey_alloc pkey_free pkey_mprotect shmat shmctl shmdt""",
    "Memory that only a control group counts; without one see below.": "memfd_create shmget msgget semget",
    "Processes and threads: the pid namespace has no others.": """clone fork vfork execve execveat exit exit_group wait4
        waitid kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal set_tid_address
        set_robust_list get_robust_list rseq futex futex_wait futex_wake futex_waitv futex_requeue arch_prctl prctl
        personality restart_syscall setpgid getpgid getpgrp setsid getsid""",
    "Signals of its own.": """rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigreturn
        sigaltstack pause""",
    "Who and where it is: the answers are the namespaces'.": """getpid getppid gettid getuid geteuid getgid getegid
        getresuid getresgid getgroups capget uname sysinfo getcpu getrandom times getrusage""",
    "Limits and priorities: they can only be lowered.": """getrlimit setrlimit prlimit64 getpriority setpriority
        ioprio_get ioprio_set sched_yield sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler
        sched_getparam sched_setparam sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min
        sched_rr_get_interval""",
    "Reading clocks, and timers of its own.": """time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep
        alarm getitimer setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete""",
    "Sockets: the network namespace leads nowhere.": """socket socketpair bind listen accept accept4 connect getsockname
        getpeername getsockopt setsockopt shutdown sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg""",
    "Queues and semaphores: the ipc namespace's, gone with it.": """msgsnd msgrcv msgctl semop semtimedop semctl mq_open
        mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
    "Harmless without what it belongs to, which is refused.": "inotify_rm_watch",
}
"""Why it is safe, and which calls."""

DENIED: dict[str, str] = {
    "Mounts and roots: the file system view is what isolates.": """mount umount2 pivot_root chroot mount_setattr
        move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick quotactl quotactl_fd swapon swapoff acct
        listmount statmount sysfs ustat""",
    "Namespaces: a new user namespace opens most of the kernel's privileged surface.": "unshare setns",
    "Its flags, those of new namespaces among them, lie in memory, where no filter looks.": "clone3",
    "Other processes: our own pid 1, and memory that is not the caller's.": """ptrace process_vm_readv
        process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp migrate_pages move_pages""",
    "Keyrings and handles are not namespaced.": """add_key request_key keyctl open_by_handle_at name_to_handle_at""",
    "Kernel programs and machinery with a history of holes.": """bpf perf_event_open userfaultfd io_uring_setup
        io_uring_enter io_uring_register io_setup io_submit io_destroy io_cancel io_getevents io_pgetevents
        fanotify_init fanotify_mark lookup_dcookie vmsplice splice tee remap_file_pages memfd_secret modify_ldt uselib
        seccomp lsm_set_self_attr lsm_get_self_attr lsm_list_modules map_shadow_stack""",
    "Landlock: a guest could only forbid itself more, for kernel memory that is copied sixteen layers deep.": """
        landlock_create_ruleset landlock_add_rule landlock_restrict_self""",
    "Modules, kexec, power, consoles, raw I/O.": """init_module finit_module delete_module create_module query_module
        get_kernel_syms kexec_load kexec_file_load reboot ioperm iopl vhangup syslog _sysctl nfsservctl afs_syscall
        getpmsg putpmsg security tuxcall vserver""",
    "Clocks and names of the machine.": "settimeofday clock_settime clock_adjtime adjtimex setdomainname sethostname",
    "Identities: a sandbox has one.": """setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid
        setgroups capset chown fchown lchown fchownat""",
    "Watching files: those we show are the host's, and so is what others do with them, by name.": """inotify_init
        inotify_init1 inotify_add_watch""",
    "Work for the host's disks: a sandbox has none of its own.": "sync syncfs",
    "Memory that cannot be swapped or is placed by node.": """mlockall mlock2 mbind set_mempolicy get_mempolicy
        set_mempolicy_home_node""",
}
"""Why not, and which calls: EPERM."""

UNCOUNTED: dict[str, str] = {
    "Without control groups: memory that RLIMIT_AS does not see, for it stays when nothing maps it.": """shmget
        memfd_create msgget semget"""
}
"""Refused as well where nothing but address space is limited."""

PROBED = frozenset(
    {
        *("clone3", "io_uring_setup", "userfaultfd", "bpf", "perf_event_open", "open_tree", "fsopen"),
        *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
        *("inotify_init", "inotify_init1"),
    }
)
"""Refused with ENOSYS: libraries try these and fall back. glibc turns EPERM from clone3 into a failed thread."""


def names(reasons: dict[str, str]) -> set[str]:
    """Return the calls of a list, without their reasons."""
    return {name for calls in reasons.values() for name in calls.split()}
