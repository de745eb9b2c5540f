"""Which versions may use the schema: told to those that do not know the migrations that made it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None
oldest_reader = "0012"


def upgrade() -> None:
    op.create_table(
        "schema_info",
        sa.Column("oldest_reader", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("oldest_reader", name=op.f("pk_schema_info")),
    )


def downgrade() -> None:
    op.drop_table("schema_info")
