"""`python -m flows.store` is `minillm store`: what is there, whether it is whole, and room for more."""

if __name__ == "__main__":
    from cli.app import main

    main("store")
