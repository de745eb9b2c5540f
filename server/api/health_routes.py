"""What supervisors and load balancers ask, without a key: does it live, and can it work now."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from server.api.problems import problem
from server.api.view import View
from server.coordinator.readiness import Readiness


class CheckView(View):
    """One thing that the coordinator's work needs."""

    ok: bool
    reason: str
    """What is wrong; empty: nothing."""


class ReadinessView(View):
    """Whether the coordinator can do its work now."""

    ready: bool
    checks: dict[str, CheckView]
    """``database`` and ``store`` answer; ``lead``: somebody works on jobs; ``life``: it is not about to stop."""


def create_health_router(readiness: Readiness) -> APIRouter:
    """Build the routes."""
    router = APIRouter()

    @router.get(
        "/healthz",
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": {"example": "ok"}}}},
    )
    async def healthz() -> str:
        """Whether the process and its event loop live; a process that does not answer is to be started anew."""
        return "ok"

    @router.get("/readyz", response_model=ReadinessView)
    async def readyz() -> ReadinessView | Response:
        """Whether it can do its work now; 503 with the same ``checks`` when it is to be sent nobody."""
        reasons = await readiness.look()
        checks = {name: CheckView(ok=not reason, reason=reason) for name, reason in sorted(reasons.items())}
        view = ReadinessView(ready=not any(reasons.values()), checks=checks)
        if view.ready:
            return view
        detail = "; ".join(f"{name}: {check.reason}" for name, check in checks.items() if not check.ok)
        return problem(503, f"not ready: {detail}", **view.model_dump())

    return router
