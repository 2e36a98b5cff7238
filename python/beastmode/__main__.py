"""`python -m beastmode`, and the program `beastmode`."""

from __future__ import annotations

import sys

from beastmode.errors import MissingExtra


def main() -> int:
    """Run the program with the arguments of this process and return its exit code."""
    try:
        from beastmode import commands  # noqa: PLC0415 - it needs libraries that may be missing
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in ("click", "rich"):
            raise
        sys.stderr.write(f"{MissingExtra(library, 'cli')}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return commands.run()


if __name__ == "__main__":
    sys.exit(main())
