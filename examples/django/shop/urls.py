"""The project's pages."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from obskit_gunicorn.multiprocess import generate_latest


def hello(request: HttpRequest, name: str) -> HttpResponse:
    """Greet somebody."""
    return HttpResponse(f"Hello {name}\n", content_type="text/plain")


def metrics(request: HttpRequest) -> HttpResponse:
    """Show the metrics of all workers; the exporter does so too, and needs no worker for it."""
    return HttpResponse(generate_latest(), content_type="text/plain; version=0.0.4")


urlpatterns = [
    path("hello/<str:name>", hello, name="hello"),
    path("metrics", metrics, name="metrics"),
]
