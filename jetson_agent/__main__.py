"""``python -m jetson_agent``."""

from jetson_agent.cli import main

if __name__ == "__main__":
    main()
