"""Where the frozen binary starts."""

from agent.__main__ import main

main()
