"""Requests that no client library would send: each gets a clear error, and the server stays well."""

import datetime
import gzip
import http.client
import json
import socket
import urllib.request

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

TARGET = "AmazonEC2ContainerServiceV20141113."


class Raw:
    def __init__(self, server):
        self.server = server
        settings = server.settings
        self.key = (settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"])

    def signed(self, operation, body, *, key=None, service="ecs", region=None, target=TARGET, more=None):
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"{target}{operation}"} | (more or {})
        request = botocore.awsrequest.AWSRequest("POST", self.server.url + "/", headers=headers, data=body)
        credentials = botocore.credentials.Credentials(*(key or self.key))
        botocore.auth.SigV4Auth(credentials, service, region or self.server.region).add_auth(request)
        return dict(request.headers.items())

    def send(self, headers, body, method="POST", path="/"):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(), dict(response.headers)
        finally:
            connection.close()

    def refused(self, headers, body, code, status=400):
        got, text, answered = self.send(headers, body)
        error = json.loads(text)
        assert (got, error["__type"].rpartition("#")[2]) == (status, code), text
        assert error.get("message") or error.get("Message"), text
        assert {"x-amzn-requestid", "x-amzn-RequestId"} & set(answered), answered
        return error.get("message") or error.get("Message")


@pytest.fixture
def raw(server):
    yield Raw(server)
    assert server.ended() is None
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.url + "/_coracle/health") as answer:
        assert answer.status == 200
    server.client("ecs").list_clusters()


@pytest.mark.parametrize("body", [b"{", b"[]", b"nonsense", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":1}{'])
def test_malformed_json(raw, body):
    raw.refused(raw.signed("ListClusters", body), body, "SerializationException")


@pytest.mark.parametrize(
    "parameters", [{"maxResults": "many"}, {"nextToken": 7}, {"maxResults": 1 << 70}, {"maxResults": []}]
)
def test_wrong_types(raw, parameters):
    body = json.dumps(parameters).encode()
    raw.refused(raw.signed("ListClusters", body), body, "SerializationException")


def test_missing_fields(raw):
    for operation in ("RunTask", "DescribeTasks", "StopTask", "RegisterTaskDefinition"):
        status, text, _ = raw.send(raw.signed(operation, b"{}"), b"{}")
        error = json.loads(text)
        assert status == 400 and error["__type"].rpartition("#")[2] in (
            "InvalidParameterException", "ClientException", "ValidationException",
        ), (operation, text)


def test_over_long_names(raw):
    body = json.dumps({"clusterName": "x" * 256}).encode()
    raw.refused(raw.signed("CreateCluster", body), body, "InvalidParameterException")
    body = json.dumps({"family": "x" * 256, "containerDefinitions": []}).encode()
    raw.refused(raw.signed("RegisterTaskDefinition", body), body, "ClientException")


def test_unknown_operation(raw):
    raw.refused(raw.signed("MakeCoffee", b"{}"), b"{}", "UnknownOperationException")
    headers = raw.signed("ListClusters", b"{}", target="NoSuchService.")
    assert raw.send(headers, b"{}")[0] in (400, 404)


def test_unsupported_operation(raw):
    body = json.dumps({"serviceName": "x"}).encode()
    status, text, _ = raw.send(raw.signed("CreateService", body), body)
    assert status in (400, 501) and b"CreateService" in text, text


def test_bad_signatures(raw):
    raw.refused(raw.signed("ListClusters", b"{}"), b'{"maxResults":1}', "InvalidSignatureException")
    headers = raw.signed("ListClusters", b"{}", key=(raw.key[0], "not the secret"))
    raw.refused(headers, b"{}", "InvalidSignatureException")
    headers = raw.signed("ListClusters", b"{}", key=("AKIANOBODYNOBODYNOBO", raw.key[1]))
    raw.refused(headers, b"{}", "UnrecognizedClientException")
    headers = raw.signed("ListClusters", b"{}")
    del headers["Authorization"]
    raw.refused(headers, b"{}", "MissingAuthenticationTokenException")
    for broken in ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=x", "Bearer x", "AWS4-HMAC-SHA256 " + "x" * 5000):
        status, text, _ = raw.send(headers | {"Authorization": broken}, b"{}")
        assert status in (400, 403), text
    assert raw.key[1].encode() not in text


def test_signature_for_elsewhere(raw):
    for elsewhere in ({"region": "mars-north-1"}, {"service": "s3"}):
        status, text, _ = raw.send(raw.signed("ListClusters", b"{}", **elsewhere), b"{}")
        assert status in (400, 403), text


def test_expired_date(raw, monkeypatch):
    old = botocore.auth.get_current_datetime

    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: old(*a, **k) - datetime.timedelta(hours=1))
    message = raw.refused(raw.signed("ListClusters", b"{}"), b"{}", "InvalidSignatureException")
    assert "expired" in message.lower()


def test_presigned(raw):
    url = raw.server.client("sts").generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod="GET")
    status, text, _ = raw.send({}, None, "GET", url[len(raw.server.url) :])
    assert status == 200 and f"<Account>{raw.server.account}</Account>".encode() in text
    status, text, _ = raw.send({}, None, "GET", url[len(raw.server.url) : -1] + ("0" if url[-1] != "0" else "1"))
    assert status == 403 and b"SignatureDoesNotMatch" in text


def test_too_large(raw):
    headers = raw.signed("ListClusters", b"{}") | {"Content-Length": str(64 << 20)}
    connection = http.client.HTTPConnection("127.0.0.1", raw.server.port, timeout=30)
    connection.putrequest("POST", "/")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    try:
        for _ in range(64):
            connection.send(bytes(1 << 20))
    except OSError:
        # The server need not read it all.
        pass
    try:
        assert connection.getresponse().status == 413
    except (OSError, http.client.HTTPException):
        # Nor need its answer get through to one who goes on sending.
        pass
    finally:
        connection.close()


def test_compressed_body(raw):
    """The SDKs' request compression is for operations whose model has it: none that is served."""
    body = gzip.compress(b'{"clusters":["default"]}')
    headers = raw.signed("DescribeClusters", body)
    message = raw.refused(headers | {"Content-Encoding": "gzip"}, body, "SerializationException")
    assert "Content-Encoding 'gzip'" in message and "uncompressed" in message
    raw.refused(headers, body, "SerializationException")
    raw.refused(headers | {"Content-Encoding": "br, gzip"}, body, "SerializationException")


@pytest.mark.parametrize("kind", ["UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"])
def test_unsigned_body(raw, kind):
    """What S3 takes: a body that whoever is between client and server may change."""
    body = b'{"clusters":["default"]}'
    headers = raw.signed("DescribeClusters", body, more={"X-Amz-Content-SHA256": kind})
    assert "SHA-256 of the body" in raw.refused(headers, body, "InvalidSignatureException")


def test_not_http(raw):

    with socket.create_connection(("127.0.0.1", raw.server.port)) as connection:
        connection.sendall(b"\x16\x03\x01\x00\xff nonsense \r\n\r\n")
        connection.settimeout(10)
        assert connection.recv(100)[:8] in (b"", b"HTTP/1.1")


def test_error_of_the_query_protocol(raw):
    body = b"Action=NoSuchAction&Version=2011-06-15"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    status, text, _ = raw.send(headers, body)
    assert 400 <= status < 500 and text
