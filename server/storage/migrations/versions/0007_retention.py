"""Whether the payloads of a model version, and of the step to it, are still kept: old ones go when room is needed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NAMES = ("is_kept", "is_step_kept")


def upgrade() -> None:
    for name in _NAMES:
        op.add_column("model_versions", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.true()))


def downgrade() -> None:
    with op.batch_alter_table("model_versions") as batch:
        for name in _NAMES:
            batch.drop_column(name)
