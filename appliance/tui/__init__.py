"""The live view of a node in a terminal, with Textual: it shows what happens, and asks core to change things.

- `app`: puts the parts together, holds the keys that work everywhere, and goes from one view to another.
- `context`: what a screen may ask of the app, and the messages by which it asks to go somewhere else.
- `data`: what is known, and how it is read and kept current.
- `screens`: the views and dialogs. `widgets`: what they are made of.
- `palette`: commands found by name. `themes`: the colours. `text`: the wording of states, times and numbers.

A key: Textual calls the action of the screen that is seen. The screen gives the order to `Context.act`, which runs it
in a thread against `core/node`; the outcome comes back as a message, which the app shows, and what the order may have
changed is read again. A key that goes somewhere else posts a message such as `OpenDiff`, which the app handles.

What always holds: nothing that may block runs on the UI thread. There is no git, SQL or socket here; core does all
three. A screen imports nothing of the app, and no module imports another in a circle. Words of strangers pass
`text.plain` before they are drawn. Looking at a node creates nothing on disk.
"""
