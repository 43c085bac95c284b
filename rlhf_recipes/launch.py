"""`accelerate launch` without the launcher's own traceback.

Each process prints why it ended; the launcher only passes the exit status on.
"""

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Launch the command line, and exit with the status of the first process that failed."""
    options = launch_command_parser().parse_args()
    try:
        launch_command(options)
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        raise SystemExit(status if status > 0 else 128 - status) from None


if __name__ == "__main__":
    main()
