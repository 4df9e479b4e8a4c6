"""How to test metrics: in one process they are prometheus_client's ordinary ones."""

from __future__ import annotations

from app import application
from prometheus_client import REGISTRY


def orders(product: str) -> float:
    """Return how many orders of a product were taken in this process."""
    return REGISTRY.get_sample_value("shop_orders_total", {"product": product}) or 0.0


def test_order_is_counted() -> None:
    """An order counts once, and only for its own product."""
    tea, coffee = orders("tea"), orders("coffee")
    assert application.test_client().post("/orders/tea/2").status_code == 200
    assert (orders("tea"), orders("coffee")) == (tea + 1, coffee)


def test_unknown_product_makes_no_series() -> None:
    """What nobody sells is refused and not counted."""
    assert application.test_client().post("/orders/gold/2").status_code == 404
    assert REGISTRY.get_sample_value("shop_orders_total", {"product": "gold"}) is None
