"""Pre-train the testbed's base models again: python jobs/pretrain_testbed.py --output DIR."""

import argparse
import logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder that gets v1/, v2/, …")
    names = ["v1", "v2", "chat-v1", "chat-v2"]
    parser.add_argument("--models", nargs="+", default=names, choices=[*names, "v0"],
                        help="v0 is an older, weaker base, which ships with nothing")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    # Imported late: --help and a wrong argument answer at once.
    from muscle.testbed.company import pretrain_chats
    from muscle.testbed.pretrain import pretrain

    chats = [name for name in arguments.models if name.startswith("chat-")]
    plain = [name for name in arguments.models if name not in chats]
    pretrain(arguments.output, plain, arguments.threads)
    pretrain_chats(arguments.output, chats, arguments.threads)


if __name__ == "__main__":
    main()
