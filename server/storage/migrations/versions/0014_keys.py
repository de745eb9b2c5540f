"""What a request for a job is known by when it is sent again, the authority of who leads, and keys found by digest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
oldest_reader = "0012"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("idempotency_key", sa.String(255)))
    op.create_index("ix_jobs_idempotency_key", "jobs", ["idempotency_key"], unique=True)
    op.add_column("leases", sa.Column("authority", sa.String(80)))
    op.create_index("ix_api_keys_digest", "api_keys", ["digest"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_api_keys_digest", "api_keys")
    with op.batch_alter_table("leases") as batch:
        batch.drop_column("authority")
    op.drop_index("ix_jobs_idempotency_key", "jobs")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("idempotency_key")
