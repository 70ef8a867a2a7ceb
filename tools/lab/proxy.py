"""An nginx of our own before a service, with the settings of docs/service.md."""

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or ""
_CONFIG = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile 4096;
events {{ worker_connections 2048; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{service};
      proxy_http_version 1.1;
      proxy_set_header Host 127.0.0.1:{service};
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
      client_max_body_size 64k;
    }}
  }}
}}
"""


@contextmanager
def proxied(service: int) -> Iterator[int]:
    """The port of a proxy before the service at a port of loopback, which runs during the block."""
    if not NGINX:
        raise SystemExit("no nginx here: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="mint-nginx-") as name:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        file = Path(name) / "nginx.conf"
        file.write_text(_CONFIG.format(folder=name, port=port, service=service))
        process = subprocess.Popen([NGINX, "-c", str(file), "-e", f"{name}/error.log"])
        try:
            yield port
        finally:
            process.terminate()
            process.wait()
