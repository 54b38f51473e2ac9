"""The live view of a node in a terminal, with Textual: it shows what happens, and asks core to change things.

- `app`: puts the parts together, holds the keys that work everywhere, and goes from one view to another.
- `context`: what a screen may ask of the app, and the messages by which it asks to go somewhere else.
- `data`: what is known, and how it is read and kept current.
- `screens`: the views and dialogs. `widgets`: what they are made of.
- `commands`: commands that are typed. `palette`: what is found by some letters.
- `themes`: the colours. `text`: the wording of states, times and numbers.

The life of a key press: Textual calls the action of the visible screen. The screen passes an order to `Context.act`,
which runs it in a thread against `core/node`. The outcome comes back as a message, which the app shows, and everything
that the order may have changed is read again. A key that goes somewhere else posts a message such as `OpenDiff`, which
the app handles.

What always holds: nothing that may block runs on the UI thread. There is no git, SQL or socket here; core does all
three. A screen imports nothing of the app, and no module imports another in a circle. Text from guests and upstreams
passes `text.plain` before it is drawn. Viewing a node creates nothing on disk.
"""
