"""``python -m jetson_agent``."""

from jetson_agent.cli import run

if __name__ == "__main__":
    run()
