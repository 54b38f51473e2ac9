"""The views and dialogs of the live view, a module each.

- `view`: what all views have in common: tabs, filter, keys, and news. `repositories`, `sessions`, `activity`,
  `node` and `guests` are always there; `repository` and `diff` open over them.
- `repo_actions`, `session_actions`: the orders that several views share, with their keys.
- `marking`: marks on rows, and orders on all marked ones: `repo_batches`, `session_batches`, `guest_removal`.
- `repo_columns`: columns and explanations of repositories. `session_list`: sessions, read piece by piece.
- `opening`: one row of activity whole. `searching`: the search in a diff.
- `dialogs`: one row whole, questions, and forms. `help`: every key.

A view: the app makes it with a `Context`. When it appears, `reread` asks the loader for what only this view shows, and
`take` draws what the model knows. From then on `take` is called with the topics that have news, and `happened` with
events; what was read arrives as messages. A view that is not visible gets neither, and catches up when it is visible
again.

What always holds: a screen knows its `Context` and never the app. Whatever cannot be undone asks first, with the focus
on Cancel. Actions that need a `serve` say so when there is none. A result that arrives after another row was chosen is
dropped. Every key has one line of help and its place in docs/tui.md.
"""
