"""Generates a client from the document of each port, checks its types, and calls the running program with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

HERE = Path(__file__).parent


def run(*arguments):
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{arguments}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


for port in ("API", "ADMIN"):
    token = os.environ["CLIENT_TOKEN" if port == "API" else "ADMIN_TOKEN"]
    fields = {"authorization": f"Bearer {token}"}
    document = httpx.get(f"{os.environ[port]}/v1/openapi.json", headers=fields)
    name = f"outpace_{port.lower()}"
    Path(f"{name}.json").write_text(document.text)
    told = run("-m", "openapi_python_client", "generate", "--path", f"{name}.json", "--output-path", name,
               "--meta", "none", "--config", str(HERE / "generator.yaml"), "--fail-on-warning")
    described = sum(len(methods) for methods in json.loads(document.text)["paths"].values())
    functions = list(Path(name, "api", "default").glob("[a-z]*.py"))
    assert len(functions) == described, f"{len(functions)} of {described} calls are generated"
shutil.copy(HERE / "use_client.py", "use_client.py")
print(run("-m", "mypy", "--strict", "--cache-dir=/dev/null", "use_client.py", "outpace_api", "outpace_admin"))
print(run("use_client.py"))
