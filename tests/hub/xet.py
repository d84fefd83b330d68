"""What hf_xet asks when it sends a large file: the right to write, then a store of pieces, which takes everything.

The pieces are not put together again: a commit is taken of a file whose bytes the server knows already.
"""

import time

from hub.endpoints import Answer, Request, Store, refusal, route


@route("GET", "/api/TYPE/REPO/xet-write-token/REVISION")
def write_token(store: Store, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """The address of the store of pieces and what opens it."""
    repository = store.repository(request, repo_type, repo_id)
    if not request.asks("create_pr"):  # then the client names no revision that there is
        store.revision(repository, revision)
    until = int(time.time()) + 3600
    answer = Answer.of({"casUrl": store.url, "accessToken": "pieces", "exp": until})
    answer.headers |= {
        "X-Xet-Cas-Url": store.url,
        "X-Xet-Access-Token": "pieces",
        "X-Xet-Token-Expiration": str(until),
    }
    return answer


@route("GET", "/v1/chunks/default/(?P<name>[0-9a-f]{64})")
def chunk(store: Store, request: Request, name: str) -> Answer:  # noqa: ARG001
    """Whether somebody has sent a piece before: nobody has."""
    return refusal(404, "not found")


@route("POST", "/v1/xorb-grants/default/(?P<name>[0-9a-f]{64})")
def xorb(store: Store, request: Request, name: str) -> Answer:  # noqa: ARG001
    """Nothing; the server has these pieces."""
    return Answer.of({"was_inserted": True})


@route("POST", "/v2/shards")
def shards(store: Store, request: Request) -> Answer:  # noqa: ARG001
    """Nothing; how files are made of pieces is not kept."""
    return Answer.of({"type": "result", "result": 1})
