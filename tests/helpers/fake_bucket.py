"""Cloud storage on this machine: a bucket that holds objects, and neither folders, nor renames, nor locks.

It is reached in the ways in which a training reaches gs://: as a file system of fsspec, by etils.epath, over HTTP by
TensorStore, which Orbax writes arrays with (of the JSON API of Google Cloud Storage what TensorStore uses), and by the
client library that gcsfs brings along, which newer releases of Orbax ask whether a bucket has real folders.
"""
import contextlib
import io
import json
import os
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec

OBJECTS: dict[str, tuple[bytes, int]] = {}  # BUCKET/NAME -> (content, generation)
REFUSED: list[str] = []                     # parts of names that cannot be written: a store that fails
_lock = threading.Lock()


def put(name: str, content: bytes) -> int:
  """Writes an object whole; OSError where the store refuses it."""
  with _lock:
    if any(part in name for part in REFUSED):
      raise OSError(f"gs://{name}: the store is not available")
    generation = OBJECTS.get(name, (b"", 0))[1] + 1
    OBJECTS[name] = content, generation
    return generation


class _Writer(io.BytesIO):
  """An object that is being written: it appears when it is closed."""

  def __init__(self, name: str, content: bytes = b""):
    super().__init__()
    self.write(content)
    self._name = name

  def close(self) -> None:
    if not self.closed:
      put(self._name, self.getvalue())
    super().close()


class ObjectStoreFileSystem(fsspec.AbstractFileSystem):
  """What gcsfs is for gs://, without a network."""
  protocol, cachable = ("gs", "gcs"), False

  def ls(self, path, detail=True, **_):
    path = self._strip_protocol(path)
    with _lock:
      found = {}
      for name, (content, _) in OBJECTS.items():
        if name == path:
          found[name] = dict(name=name, size=len(content), type="file")
        elif name.startswith(path and f"{path}/"):
          child = "/".join(name.split("/")[:len(path.split("/")) + 1])
          is_file = child == name
          found[child] = dict(name=child, size=len(content) * is_file, type="file" if is_file else "directory")
    if not found:
      raise FileNotFoundError(path)
    return list(found.values()) if detail else list(found)

  def info(self, path, **_):
    path = self._strip_protocol(path)
    entries = self.ls(path)
    if len(entries) == 1 and entries[0]["name"] == path:
      return entries[0]
    return dict(name=path, size=0, type="directory")

  def _open(self, path, mode="rb", **_):
    path = self._strip_protocol(path)
    if mode == "rb":
      if path not in OBJECTS:
        raise FileNotFoundError(path)
      return io.BytesIO(OBJECTS[path][0])
    return _Writer(path, OBJECTS[path][0] if mode == "ab" and path in OBJECTS else b"")

  def _rm(self, path):
    with _lock:
      if OBJECTS.pop(self._strip_protocol(path), None) is None:
        raise FileNotFoundError(path)

  def rm_file(self, path):
    self._rm(path)

  def rm(self, path, recursive=False, maxdepth=None):
    for name in self.expand_path(path, recursive=recursive, maxdepth=maxdepth):
      if name in OBJECTS:
        self._rm(name)

  def cp_file(self, path1, path2, **_):
    if self._strip_protocol(path1) in OBJECTS:  # folders are made by what is in them
      put(self._strip_protocol(path2), OBJECTS[self._strip_protocol(path1)][0])

  def mkdir(self, path, create_parents=True, **_):
    """Nothing to do, as with gcsfs."""

  def makedirs(self, path, exist_ok=False):
    """Nothing to do, as with gcsfs."""

  def created(self, path):
    raise NotImplementedError

  def modified(self, path):
    raise NotImplementedError


class _Api(BaseHTTPRequestHandler):
  """The requests of TensorStore's driver "gcs"."""
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True  # otherwise the content of an answer waits until its headers are acknowledged

  def _answer(self, status: int, content: bytes = b"", **headers) -> None:
    self.send_response(status)
    for name, value in dict(headers, content_length=len(content)).items():
      self.send_header(name.replace("_", "-"), str(value))
    self.end_headers()
    self.wfile.write(content)

  def _request(self) -> tuple[str, dict[str, str]]:
    url = urlsplit(self.path)
    _, bucket, _, name = (url.path.removeprefix("/upload").removeprefix("/storage/v1") + "/").lstrip("/").split("/", 3)
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    return f"{bucket}/{unquote(name.removesuffix('/') or query.get('name', ''))}", query

  def _generation_fits(self, name: str, query: dict[str, str]) -> bool:
    generation = OBJECTS.get(name, (b"", 0))[1]
    wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
    return wanted in (None, str(generation)) and unwanted != str(generation)

  def do_GET(self):
    name, query = self._request()
    if name.endswith("/"):  # a listing
      start, end = query.get("startOffset", ""), query.get("endOffset", "")
      with _lock:
        found = [dict(name=each.removeprefix(name), size=str(len(content)), generation=str(generation))
                 for each, (content, generation) in sorted(OBJECTS.items()) if each.startswith(name)
                 and each.removeprefix(name) >= start and (not end or each.removeprefix(name) < end)
                 and each.removeprefix(name).startswith(query.get("prefix", ""))]
      self._answer(200, json.dumps(dict(items=found)).encode(), content_type="application/json")
    elif name not in OBJECTS:
      self._answer(404)
    elif not self._generation_fits(name, query):
      self._answer(304 if "ifGenerationNotMatch" in query else 412)
    else:
      content, generation = OBJECTS[name]
      if first := self.headers.get("Range"):
        first, _, last = first.removeprefix("bytes=").partition("-")
        last = min(int(last) if last else len(content) - 1, len(content) - 1)
        self._answer(206, content[int(first):last + 1], x_goog_generation=generation,
                     content_range=f"bytes {first}-{last}/{len(content)}")
      else:
        self._answer(200, content, x_goog_generation=generation)

  def do_POST(self):
    name, query = self._request()
    content = self.rfile.read(int(self.headers["Content-Length"]))
    if not self._generation_fits(name, query):
      self._answer(412)
      return
    try:
      generation = put(name, content)
    except OSError:
      self._answer(403)
      return
    described = dict(name=name.partition("/")[2], size=str(len(content)), generation=str(generation))
    self._answer(200, json.dumps(described).encode(), content_type="application/json")

  def do_DELETE(self):
    name, query = self._request()
    with _lock:
      self._answer(404 if OBJECTS.pop(name, None) is None else 204)

  def log_message(self, *_):
    """Not on the terminal."""


def _client_library() -> dict[str, types.ModuleType]:
  """google.cloud.storage, of which Orbax asks this alone."""
  cloud, storage = types.ModuleType("google.cloud"), types.ModuleType("google.cloud.storage")
  cloud.storage = storage
  storage.Client = lambda: types.SimpleNamespace(
      get_bucket=lambda name: types.SimpleNamespace(hierarchical_namespace_enabled=False))
  return {"google.cloud": cloud, "google.cloud.storage": storage}


@contextlib.contextmanager
def bucket() -> Iterator[str]:
  """gs://bucket, empty; it is gone at the end."""
  OBJECTS.clear()
  REFUSED.clear()
  server = ThreadingHTTPServer(("localhost", 0), _Api)
  threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # seconds until it ends
  variables = dict(TENSORSTORE_GCS_HTTP_URL=f"http://localhost:{server.server_port}", EPATH_USE_TF="false",
                   GOOGLE_AUTH_TOKEN_FOR_TESTING="token")
  for name in ("gs", "gcs"):  # as as_path and as etils ask for it
    fsspec.register_implementation(name, ObjectStoreFileSystem, clobber=True)
  try:
    with mock.patch.dict(os.environ, variables), mock.patch.dict(sys.modules, _client_library()):
      yield "gs://bucket"
  finally:
    server.shutdown()
    server.server_close()
