"""Gunicorn's configuration for the OpenTelemetry example."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obskit_gunicorn import ObskitGunicornConfig

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker
    from opentelemetry.sdk.trace import ReadableSpan


class Config(ObskitGunicornConfig):
    """Two workers, each of which sends its own spans."""

    bind = "127.0.0.1:8000"
    workers = 2
    metrics_exemplars = True

    def post_fork(self, server: Arbiter, worker: Worker) -> None:
        """Begin tracing in the worker: the thread that sends spans does not survive a fork."""
        super().post_fork(server, worker)
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
        # In production: OTLPSpanExporter(), of opentelemetry-exporter-otlp.
        exporter = ConsoleSpanExporter(formatter=_one_line)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        trace.set_tracer_provider(provider)  # its last spans are sent when the worker exits


def _one_line(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"trace {context.trace_id:032x} span {span.name}\n"
