"""Calls the program by the generated clients. The type checker reads this file, too."""

import os

from outpace_admin import AuthenticatedClient as Operator
from outpace_admin.api.default import list_blocks, pin_limit, status, unpin_limit
from outpace_admin.models import BlockList, LimitChange, PinReply, PortProblem, StatusReply
from outpace_api import AuthenticatedClient
from outpace_api.api.default import (
    acquire,
    create_buffer,
    get_item,
    list_items,
    push_batch,
    push_item,
    release,
)
from outpace_api.models import (
    AcquireReply,
    AcquireRequest,
    BatchReply,
    BufferSpec,
    BufferView,
    ItemPage,
    ItemSpec,
    ItemView,
    PermitName,
    Problem,
    ReleaseReply,
)

app = AuthenticatedClient(base_url=os.environ["API"], token=os.environ["CLIENT_TOKEN"])
slot = acquire.sync("t", client=app, body=AcquireRequest(cost=2, max_wait="5s"))
assert isinstance(slot, AcquireReply) and slot.target == "t" and slot.permit is not None, slot
permit = PermitName(permit=slot.permit)
done = release.sync("t", client=app, body=permit)
assert isinstance(done, ReleaseReply) and done.released, done
again = release.sync("t", client=app, body=permit)
assert isinstance(again, Problem) and again.reason == "no-such-permit", again

buffer = create_buffer.sync(
    client=app, body=BufferSpec(name="generated", url="http://plain.test/in")
)
assert isinstance(buffer, BufferView) and buffer.order == "strict", buffer
item = push_item.sync(buffer.id, client=app, body=ItemSpec(body="x"), idempotency_key="a")
assert isinstance(item, ItemView) and item.seq == 1, item
batch = push_batch.sync(buffer.id, client=app, body=[ItemSpec(body="y"), ItemSpec(body="z")])
assert isinstance(batch, BatchReply) and len(batch.items) == 2, batch
page = list_items.sync(buffer.id, client=app, limit=10)
assert isinstance(page, ItemPage) and len(page.items) == 3, page
shown = get_item.sync(item.id, client=app, body=True)
assert isinstance(shown, ItemView) and shown.request, shown

operator = Operator(base_url=os.environ["ADMIN"], token=os.environ["ADMIN_TOKEN"])
blocks = list_blocks.sync("t", client=operator)
assert isinstance(blocks, BlockList) and blocks.blocks == [], blocks
pin = pin_limit.sync("t", "rate", client=operator, body=LimitChange(rate="5/1s", burst=2))
assert isinstance(pin, PinReply) and pin.pinned is not None, pin
state = status.sync(client=operator)
assert isinstance(state, StatusReply) and state.spool, state
assert state.targets[0].limits[0].pinned == pin.pinned, state
unpinned = unpin_limit.sync("t", "rate", client=operator)
assert isinstance(unpinned, PinReply) and unpinned.pinned is None, unpinned
missing = unpin_limit.sync("t", "none", client=operator)
assert isinstance(missing, PortProblem) and missing.status == 404, missing
print("all calls worked")
