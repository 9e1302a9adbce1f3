"""The Creatify API, simulated: one account whose tasks arrive, run, finish and fail, behind an HTTP server.

It does not use the exporter, and what it serves depends only on a seed and a clock.
"""

from creatify_exporter.simulator.account import Account
from creatify_exporter.simulator.clock import Clock
from creatify_exporter.simulator.faults import (
    FAULTS,
    LIST_PATH,
    Fault,
    Faults,
    Response,
    delayed,
    dripping,
    inserted,
    odd_task,
    redirected,
    replied,
)
from creatify_exporter.simulator.listing import COMPACT, REVERSED, SPACED, Listing
from creatify_exporter.simulator.products import PRODUCTS, Product
from creatify_exporter.simulator.scenes import demo_simulator, incidents, serve
from creatify_exporter.simulator.server import BALANCE_PATH, FAIL_PATH, Request, Served, Simulator
from creatify_exporter.simulator.task import State, Step, Task, Truth
from creatify_exporter.simulator.traffic import MODELS, Incident, Model, Traffic

__all__ = [
    "BALANCE_PATH",
    "COMPACT",
    "FAIL_PATH",
    "FAULTS",
    "LIST_PATH",
    "MODELS",
    "PRODUCTS",
    "REVERSED",
    "SPACED",
    "Account",
    "Clock",
    "Fault",
    "Faults",
    "Incident",
    "Listing",
    "Model",
    "Product",
    "Request",
    "Response",
    "Served",
    "Simulator",
    "State",
    "Step",
    "Task",
    "Traffic",
    "Truth",
    "delayed",
    "demo_simulator",
    "dripping",
    "incidents",
    "inserted",
    "odd_task",
    "redirected",
    "replied",
    "serve",
]
