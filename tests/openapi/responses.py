"""Validates the OpenAPI documents of both ports, and the program's responses against them.

An object of a response may have no property that is not described.
"""

import copy
import json
import os
import re
import sys
from urllib.parse import urlsplit

import httpx
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

METHODS = ("get", "post", "patch", "delete", "put")
faults = []


def references(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def close(value):
    """Forbids properties that are not described."""
    if isinstance(value, dict):
        if "properties" in value and "additionalProperties" not in value:
            value["additionalProperties"] = False
        for inner in value.values():
            close(inner)
    elif isinstance(value, list):
        for inner in value:
            close(inner)


def filled(template, names):
    """Returns the path of a template with these values."""
    for name, value in names.items():
        template = template.replace("{" + name + "}", value)
    return template


def body(method):
    """Returns the body of a call that must not fail for its body."""
    return {"json": {}} if method in ("post", "patch", "put") else {}


class Port:
    def __init__(self, base, token, http2=False):
        self.http2 = http2
        self.token = {"authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=base, http1=not http2, http2=http2, timeout=30)
        self.document = self.http.get("/v1/openapi.json", headers=self.token).json()
        validate(self.document)
        names = set(self.document["components"]["schemas"])
        for reference in references(self.document):
            name = reference.removeprefix("#/components/schemas/")
            assert name in names, f"{reference} does not resolve"
        self.closed = copy.deepcopy(self.document)
        close(self.closed["components"]["schemas"])
        self.seen = {}
        self.operations = {
            (method, path): operation
            for path, item in self.document["paths"].items()
            for method, operation in item.items()
            if method in METHODS
        }

    def template(self, method, path):
        """Returns the described path, where a literal segment takes precedence over a parameter."""
        fitting = []
        for known_method, known in self.operations:
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(known))
            if known_method == method and re.fullmatch(pattern, path):
                fitting.append(known)
        assert fitting, f"{method} {path} is not described"
        return min(fitting, key=lambda known: known.count("{"))

    def check(self, method, template, response):
        """Validates a response against its description."""
        what = f"{method} {template} {response.status_code}"
        described = self.operations[method, template]["responses"]
        known = described.get(str(response.status_code)) or described.get("default")
        if known is None:
            return faults.append(f"{what}: the status is not described")
        kind = response.headers.get("content-type", "").split(";")[0]
        content = known["content"]
        media = content.get(kind) or content.get("*/*")
        if media is None:
            return faults.append(f"{what}: the type `{kind}` is not described")
        value = (
            response.json()
            if kind == "application/json" or kind.endswith("+json")
            else response.text
        )
        if "*/*" in content and kind not in content:
            value = response.text
        schema = {**media["schema"], "components": self.closed["components"]}
        for error in Draft202012Validator(schema).iter_errors(value):
            faults.append(f"{what}: {error.json_path}: {error.message}: {response.text[:600]}")
        self.seen.setdefault((method, template), set()).add(response.status_code)

    def call(self, method, path, expected, token=True, **more):
        if "json" not in more and "content" not in more and method in ("post", "patch"):
            more["json"] = {}
        headers = {**(self.token if token else {}), **more.pop("headers", {})}
        response = self.http.request(method.upper(), path, headers=headers, **more)
        self.check(method, self.template(method, urlsplit(path).path), response)
        if response.status_code != expected:
            faults.append(f"{method} {path}: {response.status_code} {response.text[:400]}")
        return response

    def status(self, method, path):
        sent = {"headers": self.token, **body(method)}
        return self.http.request(method.upper(), path, **sent).status_code

    def undescribed(self, names):
        """Checks that no other method of a described path answers, and no longer path."""
        for template in self.document["paths"]:
            path = filled(template, names)
            for method in METHODS:
                if (method, template) not in self.operations:
                    status = self.status(method, path)
                    if status != 405:
                        faults.append(f"{method} {template} is not described, and answers {status}")
            for method in ("get", "post"):
                status = self.status(method, f"{path}/more/x")
                if status != 404:
                    faults.append(
                        f"{method} {template}/more/x is not described, and answers {status}"
                    )

    def refusals(self, names):
        """Compares the parameters and the security of each call with its description."""
        self.undescribed(names)
        for (method, template), operation in self.operations.items():
            path = filled(template, names)
            query = {p["name"] for p in operation["parameters"] if p["in"] == "query"}
            security = operation["security"]
            if security == []:
                continue
            parameter = {"no-such": "1"}
            response = self.http.request(
                method.upper(), path, params=parameter, headers=self.token, **body(method)
            )
            self.check(method, template, response)
            detail = response.json().get("detail", "")
            stated = re.search(r"there is no parameter `no-such` here; (.*)", detail)
            if response.status_code != 400 or not stated:
                faults.append(f"{method} {template}: {response.status_code} {detail}")
                continue
            known = re.search(r"the parameters are (.*)", stated[1])
            known = set(known[1].split(", ")) if known else set()
            if known != query:
                faults.append(f"{method} {template}: knows {known}, and {query} is described")
            response = self.http.request(method.upper(), path, **body(method))
            if response.status_code != 401 and {} not in security:
                faults.append(f"{method} {template}: {response.status_code} without a token")
            if response.status_code == 401:
                self.check(method, template, response)

    def finish(self):
        for operation in self.operations:
            statuses = self.seen.get(operation, set())
            if not any(200 <= status < 300 for status in statuses):
                faults.append(f"{operation}: no success was checked, only {statuses}")
        count = sum(len(statuses) for statuses in self.seen.values())
        print(f"{len(self.operations)} calls, {count} different responses")


def spool(port):
    """Makes the calls for buffers, items and attempts."""
    name = "b"
    spec = {
        "name": name,
        "url": "http://plain.test/in",
        "headers": {"x-a": "b"},
        "backoff": "fixed",
    }
    port.call("get", "/v1/buffers", 200)
    made = port.call("post", "/v1/buffers", 201, json=spec).json()
    port.call("post", "/v1/buffers", 200, json=spec)
    port.call("post", "/v1/buffers", 409, json={**spec, "url": "http://plain.test/other"})
    port.call("post", "/v1/buffers", 400, json={"name": "c"})
    port.call("post", "/v1/buffers", 400, json={"nothing": 1})
    port.call("post", "/v1/buffers", 415, content=b"{}", headers={"content-type": "text/plain"})
    port.call("get", "/v1/buffers", 200)
    port.call("get", f"/v1/buffers/{made['id']}", 200)
    port.call("get", "/v1/buffers/missing", 404)
    port.call(
        "patch",
        f"/v1/buffers/{name}",
        200,
        json={"max_retries": 1, "max_age": "1h", "rate_limit": 100},
    )
    port.call("patch", f"/v1/buffers/{name}", 400, json={"name": "other"})
    items = f"/v1/buffers/{name}/items"
    once = {"idempotency-key": "one"}
    first = port.call(
        "post", items, 201, json={"body": "x", "metadata": {"a": 1}}, headers=once
    ).json()["id"]
    port.call("post", items, 200, json={"body": "x", "metadata": {"a": 1}}, headers=once)
    port.call("post", items, 422, json={"body": "y"}, headers=once)
    port.call("post", items, 400, json={"body": "y", "body_base64": "eA=="})
    port.call("get", f"/v1/items/{first}/response", 200, headers={"prefer": "wait=20"})
    port.call("post", f"/v1/buffers/{name}/pause", 200, json={"reason": "check"})
    plain = {"content-type": "application/octet-stream"}
    raw = port.call("post", items, 201, content=b"\xff\x00", headers=plain).json()["id"]
    port.call("get", f"/v1/items/{raw}/response", 202)
    port.call("get", f"/v1/items/{raw}?body=true", 200)
    port.call("get", f"/v1/items/{first}?body=true", 200)
    port.call("get", f"/v1/items/{first}", 200)
    port.call("get", "/v1/items/itm_0", 404)
    port.call("get", f"/v1/items/{first}/attempts?limit=5&outcome=delivered&status=200", 200)
    batch = [{"body": "1"}, {"json": {"n": 2}, "path": "/in"}, {"body": "3"}, {"body": "4"}]
    pushed = port.call("post", f"/v1/buffers/{name}/batch", 201, json=batch[:1] + batch[2:]).json()[
        "items"
    ]
    port.call("post", f"/v1/buffers/{name}/batch", 400, json=[])
    lines = {"content-type": "application/x-ndjson", "idempotency-key": "lines"}
    for status in (201, 200):
        port.call(
            "post",
            f"/v1/buffers/{name}/items:batch",
            status,
            content=b'{"body":"5"}\n{"body":"6"}\n',
            headers=lines,
        )
    port.call("get", f"{items}?state=queued&limit=2&since=2020-01-01T00:00:00Z", 200)
    port.call("get", f"{items}?after=1&item={raw}", 200)
    port.call("get", f"{items}?state=lost", 400)
    port.call("get", f"/v1/buffers/{name}/stats", 200)
    port.call("post", f"/v1/items/{pushed[0]['id']}/cancel", 200)
    port.call("get", f"/v1/items/{pushed[0]['id']}/response", 410)
    port.call("post", f"/v1/items/{pushed[0]['id']}/cancel", 409)
    port.call("delete", f"/v1/items/{pushed[1]['id']}", 200)
    port.call("post", f"/v1/items/{pushed[2]['id']}/skip", 200)
    port.call("post", f"/v1/items/{pushed[2]['id']}/retry_now", 409)
    port.call("post", f"/v1/items/{raw}/retry", 200)
    port.call("post", f"/v1/items/{raw}/retry_now", 200)
    port.call(
        "post", f"/v1/buffers/{name}/redrive", 200, json={"ids": [pushed[2]["id"]], "order": "head"}
    )
    port.call("post", f"/v1/buffers/{name}/redrive", 400, json={"order": "middle"})
    port.call("delete", f"/v1/buffers/{name}", 409)
    port.call("post", f"/v1/buffers/{name}/purge", 400)
    port.call("post", f"/v1/buffers/{name}/purge", 200, json={"state": "queued"})
    port.call("post", f"/v1/buffers/{name}/resume", 200)
    port.call("get", f"/v1/attempts?buffer={name}&item={first}&limit=1", 200)
    port.call("get", "/v1/attempts?after=x", 400)
    return {"buffer": name, "item": first, "target": "t", "limit": "rate"}


def api(port):
    names = spool(port)
    work = "/v1/targets/t"
    wanted = {"cost": 1, "max_wait": "5s", "hold": 30}
    permit = port.call("post", f"{work}/acquire", 200, json=wanted).json()["permit"]
    port.call("post", f"{work}/acquire", 400, json={"cost": 0})
    port.call("post", f"{work}/acquire", 422, json={"lane": "none"})
    port.call("post", "/v1/targets/none/acquire", 404)
    port.call("post", f"{work}/renew", 200, json={"permit": permit, "hold": "10s"})
    port.call("post", f"{work}/report", 200, json={"permit": permit, "cost": {"rate": 3}})
    port.call("post", f"{work}/report", 400, json={"permit": permit, "cost": {"none": 3}})
    port.call(
        "post", f"{work}/report", 200, json={"permit": permit, "limited": True, "retry_after": 120}
    )
    port.call("post", f"{work}/acquire", 429, json={"max_wait": "1s"})
    port.call("post", f"{work}/release", 200, json={"permit": permit})
    port.call("post", f"{work}/release", 404, json={"permit": permit})
    port.call("get", "/v1/openapi.json", 200)
    # Over HTTP/2 another authority is a request to the proxy.
    other = 407 if port.http2 else 421
    port.call("get", "/v1/openapi.json", other, headers={"host": "rebound.test"})
    port.call("get", "/v1/openapi.json", 401, headers={"authorization": "Bearer app:wrong"})
    port.call("get", "/v1/openapi.json", 403, headers={"sec-fetch-site": "cross-site"})
    port.refusals(names)
    port.call("delete", "/v1/buffers/b?force=true", 200)


def admin(port):
    target, limit = "/v1/targets/t", "/v1/targets/t/limits/rate"
    port.call("get", "/healthz", 200, token=False)
    port.call("get", "/readyz", 200, token=False)
    for certificates in ("/ca.pem", "/bundle.pem"):
        assert "BEGIN CERTIFICATE" in port.call("get", certificates, 200, token=False).text
    port.call("get", "/metrics", 200, token=False)
    port.call(
        "get", "/metrics", 200, headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    port.call("get", "/v1/openapi.json", 200)
    port.call("get", "/v1/status", 200)
    port.call("get", "/v1/replicas", 200)
    port.call("get", "/v1/explain?url=http://plain.test/&header=a:b&header=c:d&client=app", 200)
    port.call("get", "/v1/explain?url=", 400)
    # The report of the API has blocked the target.
    assert port.call("get", f"{target}/blocks", 200).json()["blocks"]
    port.call("get", f"{target}/blocks?limit=none", 400)
    port.call("get", "/v1/targets/none/blocks", 404)
    assert port.call("delete", f"{target}/blocks", 200).json()["lifted"] == 1
    port.call("patch", limit, 200, json={"rate": "500/1s"})
    port.call("patch", limit, 422, json={"concurrent": 1})
    port.call("patch", limit, 400, json={"nothing": 1})
    port.call("patch", f"{target}/limits/none", 404)
    port.call("delete", limit, 200)
    port.call("delete", f"{limit}/usage", 200)
    port.call("delete", f"{limit}/usage?key=a", 422)
    port.call("post", "/v1/reload", 200, json={"force": True})
    port.call("post", "/v1/reload", 422, json={"nothing": 1})
    with port.http.stream("GET", "/v1/attend", headers=port.token) as response:
        # The end of the iterator would close the response, and with it the session.
        lines = response.iter_lines()
        line = next(lines)
        assert '"pid"' in line, line
        held = httpx.Response(response.status_code, headers=response.headers, text=line)
        port.check("get", "/v1/attend", held)
        session = json.loads(line)["session"]
        report = port.call("get", f"/v1/attend/{session}", 200).json()
        assert "to_targets" in report, report
    port.call("get", "/v1/attend/999", 404)
    port.call("get", "/v1/attend/x", 404)
    port.call("get", "/v1/status", 403, headers={"sec-fetch-site": "cross-site"})
    port.refusals(spool(port))
    port.call("delete", "/v1/buffers/b?force=true", 200)


def main():
    # Without TLS the admin port takes HTTP/1 only.
    http2 = os.environ["HTTP"] == "2"
    ports = [
        Port(os.environ["API"], os.environ["CLIENT_TOKEN"], http2),
        Port(os.environ["ADMIN"], os.environ["ADMIN_TOKEN"]),
    ]
    api(ports[0])
    admin(ports[1])
    for port in ports:
        port.finish()
    if faults:
        sys.exit("\n".join(faults))
    print("no call is left out")


main()
