"""The project's metrics, and a middleware that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponse

RESPONSES = Counter("shop_responses", "Responses by view and status.", ["view", "code"])
IN_PROGRESS = Gauge(
    "shop_requests_in_progress", "Requests being answered now.", multiprocess_mode="livesum"
)


def count_responses(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Count each response by the name of its view, which clients cannot choose."""

    def middleware(request: HttpRequest) -> HttpResponse:
        with IN_PROGRESS.track_inprogress():
            response = get_response(request)
        match = request.resolver_match
        view = match.view_name if match else "none"
        RESPONSES.labels(view, str(response.status_code)).inc()
        return response

    return middleware
