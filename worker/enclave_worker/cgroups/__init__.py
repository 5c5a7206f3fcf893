"""Control groups: what makes memory, processes and processor time of a whole sandbox the kernel's business."""

from .group import ControlGroup, GroupLimits
from .hierarchy import ControlGroups
from .layout import CONTROLLERS, ControlGroupsMissing, Layout, find_layout

__all__ = [
    "CONTROLLERS",
    "ControlGroup",
    "ControlGroups",
    "ControlGroupsMissing",
    "GroupLimits",
    "Layout",
    "find_layout",
]
