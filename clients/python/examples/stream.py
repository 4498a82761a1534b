#!/usr/bin/env python3
"""Streams a text from a Portolan service to the terminal.

    stream.py ADDRESS PROMPT
"""

import sys

from portolan_client import Client, PortolanError


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    address, prompt = sys.argv[1:]
    with Client(address, retry_for=5) as client:
        try:
            for piece in client.stream(prompt, max_tokens=64, temperature=0.7):
                print(piece.text, end="", flush=True)
            print(f"\n[{piece.finish.completion_tokens} tokens, "
                  f"{piece.finish.reason}]", file=sys.stderr)
        except PortolanError as error:
            raise SystemExit(f"error: {error}")


if __name__ == "__main__":
    main()
