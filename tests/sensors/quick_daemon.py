"""The real `dagster-daemon`, with short pauses between its looks."""

from dagster._daemon import sensor
from dagster._daemon.cli import create_dagster_daemon_cli

sensor.MIN_INTERVAL_LOOP_TIME = 0.5

if __name__ == "__main__":
    create_dagster_daemon_cli()()
