"""The project's pages."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path


def hello(request: HttpRequest, name: str) -> HttpResponse:
    """Greet somebody."""
    return HttpResponse(f"Hello {name}\n", content_type="text/plain")


urlpatterns = [path("hello/<str:name>", hello, name="hello")]
