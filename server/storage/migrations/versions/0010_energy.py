"""What the training of an update took in joules, and where that number comes from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("updates", sa.Column("joules", sa.Float()))
    op.add_column("updates", sa.Column("joules_source", sa.String(16), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("updates") as batch:
        batch.drop_column("joules")
        batch.drop_column("joules_source")
