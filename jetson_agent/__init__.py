"""The agent on the board: times every exported architecture and reports; Python 3.10, no torch."""
