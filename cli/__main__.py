"""`python -m cli` is `minillm`, for where that is not installed."""

from cli.app import main

if __name__ == "__main__":
    main()
