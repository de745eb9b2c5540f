"""Steps from one model version to the next, which devices are sent instead of whole models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("step_digest", sa.String(64)))
    op.add_column("model_versions", sa.Column("step_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_model_versions_step_digest", "model_versions", ["step_digest"])


def downgrade() -> None:
    op.drop_index("ix_model_versions_step_digest", "model_versions")
    with op.batch_alter_table("model_versions") as batch:
        batch.drop_column("step_bytes")
        batch.drop_column("step_digest")
