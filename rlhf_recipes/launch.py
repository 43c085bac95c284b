"""`accelerate launch` for several processes, without a traceback of its own.

Each process says why it ended; the launcher adds only the status.
"""

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Launch what the command line says, and end with the first failed process's status."""
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
