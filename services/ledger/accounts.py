"""Accounts, shares and caps: the calls that say how much may be given away, and to whom."""

from __future__ import annotations

import dataclasses
from typing import Any

from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from services.common.errors import invalid, not_found
from services.common.pages import page
from services.ledger import accounting, messages
from services.ledger.accounting import E18
from services.ledger.core import Core


class Accounts(Core):
    """The part of the ledger's face that opens accounts, shares them out and changes their caps."""

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Any) -> pb.OpenAccountResponse:
        """Open an account."""
        await self.check_witness(request.witness)
        if 0 < request.unit.sampling_probability < 1 and not request.unit.noise_multiplier:
            raise invalid("unit.noise_multiplier", "must be set where unit.sampling_probability is below 1")
        unit = accounting.Unit(
            request.unit.noise_multiplier or accounting.DEFAULT_SIGMA, request.unit.sampling_probability or 1.0
        )
        delta_e18 = round(request.delta * E18)
        pool_e18 = request.truncation_pool_e18 if request.HasField("truncation_pool_e18") else delta_e18 // 10
        if not 0 < pool_e18 < delta_e18:
            raise invalid("truncation_pool_e18", "must be positive and smaller than delta")
        cap = accounting.Cap(request.epsilon, delta_e18, pool_e18, unit)
        units = await self.compute(accounting.capacity, cap)
        if units < 1:
            raise invalid("epsilon", "does not hold a single unit of this account; raise it, or choose a finer unit")
        terms = {
            "epsilon": request.epsilon,
            "delta_e18": delta_e18,
            "pool_e18": pool_e18,
            "unit_noise_multiplier": unit.noise_multiplier,
            "unit_sampling_probability": unit.sampling_probability,
            "unlimited_allowed": request.unlimited_allowed,
            "unlimited_principals": sorted(request.unlimited_principals),
        }
        name = f"accounts/{request.lineage}"
        data = {"terms": terms, "capacity": [units, pool_e18]}
        await self.submit("open", name, request, data, request.on_behalf_of)
        return pb.OpenAccountResponse(account=await self.account_message(name), receipt=self.receipt())

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.GetAccountResponse:
        """Read an account."""
        return pb.GetAccountResponse(account=await self.account_message(request.name), receipt=self.receipt())

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Any) -> pb.ListAccountsResponse:
        """List accounts."""
        accounts = [account for _, account in sorted(self.state.accounts.items())]
        chosen, token = page(accounts, request.page_size, request.page_token)
        found = [await self.account_message(account.name) for account in chosen]
        return pb.ListAccountsResponse(accounts=found, next_page_token=token, receipt=self.receipt())

    async def CreateGrant(self, request: pb.CreateGrantRequest, context: Any) -> pb.CreateGrantResponse:
        """Give a share."""
        account = self.account(request.account)
        units = await self.compute(accounting.units_at, messages.cap_of(account), request.epsilon)
        share = [units, account.capacity.truncation_e18]
        await self.submit("grant", account.name, request, {"principal": request.principal, "share": share})
        grant = self.state.grants[(account.name, request.principal)]
        message = messages.grant_message(account.name, request.principal, grant)
        return pb.CreateGrantResponse(grant=message, receipt=self.receipt())

    async def ListGrants(self, request: pb.ListGrantsRequest, context: Any) -> pb.ListGrantsResponse:
        """List shares."""
        account = self.account(request.account)
        found = sorted((who, grant) for (name, who), grant in self.state.grants.items() if name == account.name)
        chosen, token = page(found, request.page_size, request.page_token)
        grants = [messages.grant_message(account.name, who, grant) for who, grant in chosen]
        return pb.ListGrantsResponse(grants=grants, next_page_token=token, receipt=self.receipt())

    async def ProposeCapChange(self, request: pb.ProposeCapChangeRequest, context: Any) -> pb.ProposeCapChangeResponse:
        """Propose a new cap."""
        account = self.account(request.account)
        cap = dataclasses.replace(messages.cap_of(account), epsilon=request.epsilon)
        units = await self.compute(accounting.capacity, cap)
        name = f"{account.name}/capChanges/{request.request_id.lower()}"
        data = {
            "name": name,
            "epsilon": request.epsilon,
            "capacity": [units, cap.pool_e18],
            "justification": request.justification,
        }
        await self.submit("propose_cap", account.name, request, data)
        change = messages.cap_change_message(name, self.state.cap_changes[name])
        return pb.ProposeCapChangeResponse(cap_change=change, receipt=self.receipt())

    async def ApproveCapChange(self, request: pb.ApproveCapChangeRequest, context: Any) -> pb.ApproveCapChangeResponse:
        """Approve a proposed cap."""
        proposal = self.state.cap_changes.get(request.name)
        if proposal is None:
            raise not_found(request.name)
        data = {
            "name": request.name,
            "epsilon": proposal["epsilon"],
            "capacity": proposal["capacity"],
        }
        await self.submit("change_cap", proposal["account"], request, data)
        change = messages.cap_change_message(request.name, self.state.cap_changes[request.name])
        return pb.ApproveCapChangeResponse(
            cap_change=change,
            account=await self.account_message(proposal["account"]),
            receipt=self.receipt(),
        )
