"""What the demo's bakeries buy, bake and sell: the collections of each service and their records at start."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from bakerygw.demo.accounts import DAY_S, iso

Record = dict[str, object]
Seed = Callable[[Random, float], Iterator[Record]]
"""Records from a source of chance and the time in Unix seconds, oldest first."""

TEXT: Final = "text"
NUMBER: Final = "number"

PRODUCTS: Final = (
    ("Baguette", 1.2, 140),
    ("Croissant", 1.5, 110),
    ("Sourdough loaf", 4.2, 35),
    ("Rye bread", 3.6, 22),
    ("Pain au chocolat", 1.8, 70),
    ("Ensaimada", 2.1, 28),
    ("Lemon tart", 3.9, 16),
)
"""Name, unit price in euros, pieces on an ordinary day."""

INGREDIENTS: Final = (
    ("Wheat flour T55", "kg", 320, 100, "Harinas del Sur"),
    ("Rye flour", "kg", 60, 25, "Harinas del Sur"),
    ("Butter 82 %", "kg", 48, 20, "Lácteos Norte"),
    ("Fresh yeast", "kg", 6, 3, "Levaduras Vital"),
    ("Sea salt", "kg", 25, 5, "Salinas Puerto"),
    ("Whole milk", "l", 90, 40, "Lácteos Norte"),
    ("Free-range eggs", "pieces", 720, 240, "Granja Alba"),
    ("Dark chocolate 55 %", "kg", 14, 8, "Cacao Real"),
)
"""Name, unit, stock, minimum stock, supplier."""

RECIPES: Final = (
    ("Baguette", 60, {"Wheat flour T55": 15.0, "Sea salt": 0.3, "Fresh yeast": 0.15}, 240),
    ("Croissant", 80, {"Wheat flour T55": 4.0, "Butter 82 %": 2.2, "Whole milk": 2.0, "Fresh yeast": 0.12}, 900),
    ("Sourdough loaf", 20, {"Wheat flour T55": 9.0, "Rye flour": 1.5, "Sea salt": 0.2}, 1320),
    ("Lemon tart", 12, {"Wheat flour T55": 1.2, "Butter 82 %": 0.8, "Free-range eggs": 14.0}, 180),
)
"""Product, pieces it yields, ingredients in their stock units, minutes from start to shelf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One kind of record and where it lives."""

    service: str
    path: str
    """Below `/api/v1/`, without slashes at its ends."""
    required: Mapping[str, str]
    """Fields that a new record must have, and their kind: `text` or `number` (zero or more)."""
    seed: Seed


def _sales(chance: Random, now: float) -> Iterator[Record]:
    for day in range(6, -1, -1):
        for product, price, usual in PRODUCTS:
            yield {
                "date": iso(now - day * DAY_S)[:10],
                "product": product,
                "quantity": chance.randint(usual * 7 // 10, usual * 13 // 10),
                "unit_price": price,
                "channel": chance.choice(("counter", "counter", "online", "wholesale")),
            }


def _inventory(chance: Random, now: float) -> Iterator[Record]:
    for name, unit, stock, minimum, supplier in INGREDIENTS:
        yield {
            "ingredient": name,
            "quantity": round(stock * chance.uniform(0.6, 1.3), 1),
            "unit": unit,
            "minimum_stock": minimum,
            "supplier": supplier,
            "best_before": iso(now + chance.randint(5, 90) * DAY_S)[:10],
        }


def _recipes(chance: Random, now: float) -> Iterator[Record]:
    for product, pieces, ingredients, minutes in RECIPES:
        yield {"product": product, "yield": pieces, "ingredients": dict(ingredients), "minutes": minutes}


def _orders(chance: Random, now: float) -> Iterator[Record]:
    for customer in ("Hotel Alcázar", "Café Central", "Colegio San Luis", "Restaurante Mar"):
        product, price, usual = chance.choice(PRODUCTS)
        quantity = chance.randint(usual // 4, usual // 2)
        yield {
            "customer": customer,
            "product": product,
            "quantity": quantity,
            "amount": round(price * quantity, 2),
            "deliver_on": iso(now + chance.randint(1, 4) * DAY_S)[:10],
            "status": chance.choice(("confirmed", "in production", "ready")),
        }


def _suppliers(chance: Random, now: float) -> Iterator[Record]:
    for name in sorted({supplier for *_, supplier in INGREDIENTS}):
        goods = [ingredient for ingredient, *_, supplier in INGREDIENTS if supplier == name]
        yield {"name": name, "goods": goods, "lead_time_days": chance.randint(1, 4), "rating": chance.randint(3, 5)}


def _batches(chance: Random, now: float) -> Iterator[Record]:
    for product, pieces, _, minutes in RECIPES:
        yield {
            "product": product,
            "planned": pieces * 2,
            "baked": pieces * 2 - chance.randint(0, 4),
            "oven": chance.randint(1, 3),
            "started_at": iso(now - minutes * 60),
            "status": chance.choice(("done", "baking", "cooling")),
        }


def _purchases(chance: Random, now: float) -> Iterator[Record]:
    for ingredient, unit, _, minimum, supplier in INGREDIENTS[:4]:
        yield {
            "supplier": supplier,
            "ingredient": ingredient,
            "quantity": minimum * chance.randint(1, 3),
            "unit": unit,
            "expected_on": iso(now + chance.randint(1, 5) * DAY_S)[:10],
            "status": chance.choice(("sent", "confirmed")),
        }


def _terminals(chance: Random, now: float) -> Iterator[Record]:
    for name in ("Counter left", "Counter right", "Market stall"):
        receipts = chance.randint(60, 240)
        yield {"name": name, "receipts_today": receipts, "takings_today": round(receipts * 6.35, 2), "online": True}


def _forecasts(chance: Random, now: float) -> Iterator[Record]:
    for day in (1, 2, 3):
        for product, _, usual in PRODUCTS:
            expected = chance.randint(usual * 8 // 10, usual * 12 // 10)
            date = iso(now + day * DAY_S)[:10]
            yield {"date": date, "product": product, "expected": expected, "low": expected * 9 // 10}


def _training_runs(chance: Random, now: float) -> Iterator[Record]:
    for weeks in (2, 1):
        started = iso(now - weeks * 7 * DAY_S)
        error = round(chance.uniform(6, 14), 1)
        yield {"model": "demand", "started_at": started, "status": "completed", "mean_error_percent": error}


def _notifications(chance: Random, now: float) -> Iterator[Record]:
    texts = (("warning", "Butter is below its minimum stock"), ("info", "Tomorrow's forecast is ready"))
    for severity, message in texts:
        sent = iso(now - chance.randint(600, 9000))
        yield {"severity": severity, "message": message, "channel": "email", "sent_at": sent}


def _insights(chance: Random, now: float) -> Iterator[Record]:
    yield {
        "title": "Bake fewer croissants on Mondays",
        "saves_euros_a_week": chance.randint(12, 40),
        "confidence": 0.82,
    }
    yield {"title": "Order flour two days earlier", "saves_euros_a_week": chance.randint(5, 25), "confidence": 0.74}


def _weather(chance: Random, now: float) -> Iterator[Record]:
    for day in range(4):
        yield {
            "date": iso(now + day * DAY_S)[:10],
            "high_celsius": chance.randint(14, 31),
            "rain_mm": chance.choice((0, 0, 0, 2, 9)),
        }


def _holidays(chance: Random, now: float) -> Iterator[Record]:
    year = iso(now)[:4]
    for date, name in (("01-06", "Epiphany"), ("05-01", "Labour Day"), ("12-25", "Christmas Day")):
        yield {"date": f"{year}-{date}", "name": name, "extra_demand_percent": chance.randint(15, 60)}


def _runs(chance: Random, now: float) -> Iterator[Record]:
    for day in (1, 0):
        yield {
            "started_at": iso(now - day * DAY_S - 3600),
            "steps": ["forecast", "production plan", "purchase orders"],
            "status": "completed",
            "seconds": chance.randint(20, 95),
        }


COLLECTIONS: Final = (
    Collection(service="sales", path="sales", required={"product": TEXT, "quantity": NUMBER}, seed=_sales),
    Collection(service="inventory", path="inventory", required={"ingredient": TEXT}, seed=_inventory),
    Collection(service="recipes", path="recipes", required={"product": TEXT}, seed=_recipes),
    Collection(service="orders", path="orders", required={"customer": TEXT, "product": TEXT}, seed=_orders),
    Collection(service="suppliers", path="suppliers", required={"name": TEXT}, seed=_suppliers),
    Collection(service="production", path="production/batches", required={"product": TEXT}, seed=_batches),
    Collection(service="procurement", path="procurement/orders", required={"ingredient": TEXT}, seed=_purchases),
    Collection(service="pos", path="pos/terminals", required={"name": TEXT}, seed=_terminals),
    Collection(service="forecasting", path="forecasting/forecasts", required={"product": TEXT}, seed=_forecasts),
    Collection(service="training", path="training/runs", required={"model": TEXT}, seed=_training_runs),
    Collection(service="notification", path="notifications", required={"message": TEXT}, seed=_notifications),
    Collection(service="ai_insights", path="ai-insights", required={"title": TEXT}, seed=_insights),
    Collection(service="orchestrator", path="orchestrator/runs", required={}, seed=_runs),
    Collection(service="external", path="external/weather", required={"date": TEXT}, seed=_weather),
    Collection(service="external", path="external/holidays", required={"date": TEXT, "name": TEXT}, seed=_holidays),
)
"""Every collection of the demo."""

SERVICES: Final = ("auth", "tenant", *dict.fromkeys(collection.service for collection in COLLECTIONS))
"""The services' names, in lower case with `_`."""

DEMO_SERVICES: Final = ("sales", "inventory")
"""Services with an instance of their own for demo sessions."""
