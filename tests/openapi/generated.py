"""Generates a client for each port, checks its types, and calls the running program with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

HERE = Path(__file__).parent


def run(*arguments):
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{arguments}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


for port in ("API", "ADMIN"):
    token = os.environ["CLIENT_TOKEN" if port == "API" else "ADMIN_TOKEN"]
    fields = {"authorization": f"Bearer {token}"}
    document = httpx.get(f"{os.environ[port]}/v1/openapi.json", headers=fields)
    name = f"outpace_{port.lower()}"
    Path(f"{name}.json").write_text(document.text)
    source = ["--path", f"{name}.json", "--config", str(HERE / "generator.yaml")]
    output = ["--output-path", name, "--meta", "none", "--fail-on-warning"]
    run("-m", "openapi_python_client", "generate", *source, *output)
    described = sum(len(methods) for methods in json.loads(document.text)["paths"].values())
    functions = list(Path(name, "api", "default").glob("[a-z]*.py"))
    assert len(functions) == described, f"{len(functions)} of {described} calls are generated"
shutil.copy(HERE / "use_client.py", "use_client.py")
checked = ["use_client.py", "outpace_api", "outpace_admin"]
print(run("-m", "mypy", "--strict", "--cache-dir=/dev/null", *checked))
print(run("use_client.py"))
