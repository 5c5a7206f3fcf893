# attempts: exceptions that are dear or dangerous to report: cycles, groups of thousands, hostile text, no end of causes
# layer: bounded reports
# category: python level
# outcomes: EXECUTION_ERROR
# evidence: made
# host: unchanged
held("made")


class Hostile(Exception):
    @property
    def __cause__(self):
        raise SystemExit(3)

    def __str__(self):
        raise KeyboardInterrupt

    def __repr__(self):
        return "x" * (50 << 20)

    __notes__ = ["note " * 100_000] * 100


first = ValueError("first")
for number in range(20_000):
    following = ValueError("x" * 1000)
    following.__context__ = first
    first = following
first.__cause__ = Hostile()
first.__context__ = first.__cause__
raise ExceptionGroup("many", [ExceptionGroup("more", [Hostile(), first]) for _ in range(1000)])
