"""Whether Envoy can watch more files: for each it takes an inotify instance of its own, and it aborts when it
gets none. They are counted per user of a node (`fs.inotify.max_user_instances`, often 128), so that other
pods' routers use them up as well.
"""

import ctypes
import os

_libc = ctypes.CDLL(None)


def room_for(files: int) -> bool:
    """Whether this user could have so many more inotify instances just now."""
    opened: list[int] = []
    try:
        while len(opened) < files:
            descriptor = int(_libc.inotify_init1(os.O_CLOEXEC))
            if descriptor < 0:
                return False
            opened.append(descriptor)
        return True
    finally:
        for descriptor in opened:
            os.close(descriptor)
