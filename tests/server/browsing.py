"""A browser as far as forms go: what it sends of itself with them."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import AsyncIterator

import httpx

from tests.patience import LIMIT_S
from tests.server.identity.house import SecureHouse


class Browser:
    """What a browser does with forms: sends its cookie, the page's origin and the form's secret."""

    def __init__(self, house: SecureHouse) -> None:
        context = ssl.create_default_context(cadata=house.trust.tls.trust_pem.decode())
        self.http = httpx.AsyncClient(base_url=house.url, verify=context, trust_env=False, timeout=LIMIT_S)
        self.origin = {"Origin": house.url, "Sec-Fetch-Site": "same-origin"}
        self.form_token = ""

    async def log_in(self, key: str, **fields: str) -> httpx.Response:
        answer = await self.http.post("/login", data={"key": key, **fields}, headers=self.origin)
        if answer.status_code == 303:
            found = re.search(r'name="form_token" value="([^"]+)"', (await self.http.get("/enrol")).text)
            assert found
            self.form_token = found[1]
        return answer

    async def send(self, path: str, **fields: str) -> httpx.Response:
        return await self.http.post(path, data={"form_token": self.form_token, **fields}, headers=self.origin)


@contextlib.asynccontextmanager
async def browsing(house: SecureHouse, scope: str = "admin") -> AsyncIterator[Browser]:
    """Log a browser in with a key of this scope."""
    browser = Browser(house)
    async with browser.http:
        key = house.admin_key
        if scope != "admin":
            made = await house.admin.post("/api/v1/keys", json={"name": scope, "scope": scope})
            key = made.json()["key"]
        assert (await browser.log_in(key)).status_code == 303
        yield browser
