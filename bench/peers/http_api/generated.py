"""Call a server through the client that openapi-python-client generated from its description:
``generated.py FOLDER ADDRESS IMAGE``.

The folder holds the package ``client``. Run with the interpreter of the peers' environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: str, address: str, image: str) -> None:
    sys.path.insert(0, folder)
    from client.api.default import compute_cam, get_model, list_models, segment
    from client.client import Client
    from client.models import (
        ComputeCamCamFormat,
        ComputeCamFilesBody,
        Problem,
        SegmentEncoding,
        SegmentFormat,
    )
    from client.types import File

    client = Client(base_url=f"http://{address}")
    listing = list_models.sync(client=client)
    assert [model.name for model in listing.models] == ["colours", "maps", "sums"]
    assert get_model.sync("maps", client=client).to_dict() == listing.models[1].to_dict()

    def body() -> Any:
        return File(payload=Path(image).read_bytes(), file_name="photo.png")

    as_json = {"format_": SegmentFormat.JSON, "confidence": True, "timeout": 60.0}
    for encoding in SegmentEncoding:
        reply = segment.sync_detailed(
            "colours", client=client, body=body(), encoding=encoding, **as_json
        )
        whole = json.loads(reply.content)
        assert reply.parsed.to_dict() == whole, "a field is not as described"
        assert reply.parsed.mask.to_dict()[encoding.value]
    maps = compute_cam.sync(
        "maps",
        client=client,
        body=ComputeCamFilesBody(image=body(), tags=["red", "blue"]),
        cam_format=ComputeCamCamFormat.FLOAT16,
    )
    assert maps.cam.classes == ["red", "blue"]
    problem = segment.sync("colour", client=client, body=body())
    assert isinstance(problem, Problem)
    assert (problem.status, problem.reason) == (404, "MODEL_NOT_FOUND")


if __name__ == "__main__":
    main(*sys.argv[1:])
