"""`python -m cl_mofo` is `cl-mofo`."""

from cl_mofo.cli import main

if __name__ == "__main__":
    main()
