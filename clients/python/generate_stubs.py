#!/usr/bin/env python3
"""Makes portolan_client/_proto/ from the .proto files.

    generate_stubs.py DIRECTORY [NAME]...

DIRECTORY holds, or will hold, portolan_client/; NAMEs are files that clients do
not need, but tests do.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
NAMES = ("inference", "health", "rpc_status")
PACKAGE = pathlib.Path("portolan_client") / "_proto"


def compiler():
    """The command of a protoc with gRPC's plugin for Python."""
    plugin = shutil.which("grpc_python_plugin")
    protoc = shutil.which("protoc")
    if plugin and protoc:
        return [protoc, f"--plugin=protoc-gen-grpc={plugin}"], "--grpc_out"
    try:
        import grpc_tools
    except ImportError:
        raise SystemExit("error: neither protoc with grpc_python_plugin nor "
                         "grpcio-tools is installed") from None
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    return [sys.executable, "-m", "grpc_tools.protoc",
            f"-I{include}"], "--grpc_python_out"


def generate(directory, names=NAMES):
    directory = pathlib.Path(directory)
    command, grpc_out = compiler()
    # The path of a .proto file becomes the path of its Python module, so the
    # files are compiled as if they lay in the package.
    with tempfile.TemporaryDirectory() as root:
        sources = pathlib.Path(root) / PACKAGE
        sources.mkdir(parents=True)
        for name in names:
            text = (PROTO / f"{name}.proto").read_text()
            (sources / f"{name}.proto").write_text(
                text.replace('import "proto/', f'import "{PACKAGE}/'))
        (directory / PACKAGE).mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [*command, f"-I{root}", f"--python_out={directory}",
             f"{grpc_out}={directory}",
             *(str(PACKAGE / f"{name}.proto") for name in names)],
            check=True)
    (directory / PACKAGE / "__init__.py").write_text("")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    generate(sys.argv[1], (*NAMES, *sys.argv[2:]))
