"""The dashboard: pages for people, rendered here and kept live by a little script; nothing is loaded from elsewhere.

::

    router      what app.py includes: static files, pages that look, forms that change
    pages, model_pages, new_job, enrolment, keys, forms, sign_in
    listing     lists a page at a time
    page        how a page is rendered, and an error told as one
    formats     numbers, sizes and times as people read them
    charts      what is drawn, told to the browser as data
    assets      scripts and styles under names that hold their digest
"""

__all__: list[str] = []
