"""Verbs, each with synonyms; CLIP knows only the first before fine-tuning."""

ACTION_WORDS: dict[str, tuple[str, ...]] = {
    "running": ("running", "racing", "dashing", "sprinting"),
    "sitting": ("sitting", "sitting down", "seated"),
    "jumping": ("jumping", "leaping", "jumping high", "springing up", "jumping into the air"),
    "walking": ("walking", "strolling", "taking a walk"),
    "standing": ("standing", "standing still", "waiting"),
    "flying": ("flying", "soaring", "flying through the air"),
    "driving": ("driving", "speeding", "moving"),
    "parked": ("parked", "stopped", "standing still"),
    "lying": ("lying", "resting", "lying on the ground", "laying"),
    "swimming": ("swimming", "paddling", "splashing", "bathing"),
    "sailing": ("sailing", "gliding", "moving"),
    "anchored": ("anchored", "floating", "moored"),
    "bouncing": ("bouncing", "hopping", "bouncing up"),
    "falling": ("falling", "tumbling", "falling down"),
    "floating": ("floating", "drifting"),
}
FINITE_VERBS: dict[str, tuple[str, ...]] = {
    "running": ("runs", "races", "dashes"),
    "sitting": ("sits", "sits down"),
    "jumping": ("jumps", "leaps", "jumps up"),
    "walking": ("walks", "strolls", "takes a walk"),
    "standing": ("stands", "waits"),
    "flying": ("flies", "soars"),
    "driving": ("drives", "speeds", "moves"),
    "parked": ("is parked", "has stopped"),
    "lying": ("lies", "rests", "lays"),
    "swimming": ("swims", "paddles", "splashes"),
    "sailing": ("sails", "glides"),
    "anchored": ("is anchored", "floats"),
    "bouncing": ("bounces", "hops"),
    "falling": ("falls", "tumbles down"),
    "floating": ("floats", "drifts"),
}
PEOPLE_ACTION_WORDS: dict[str, tuple[str, ...]] = {
    "jumping": ("jumping with arms in the air",),
    "standing": (
        "posing",
        "posing for a photo",
        "posing for a picture",
        "standing and looking at the camera",
    ),
    "sitting": ("sitting and smiling at the camera",),
}
PEOPLE_FINITE_VERBS: dict[str, tuple[str, ...]] = {
    "standing": ("poses", "poses for a picture", "looks at the camera"),
    "sitting": ("smiles at the camera",),
}
"""What only people do besides."""
AT_PLAY = frozenset(
    (subject, action) for subject in ("boy", "girl", "dog") for action in ("running", "jumping", "swimming")
)
"""(subject, action) that may be called just playing."""

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "riding bicycle": ("riding {}", "riding on {}", "pedaling {}", "cycling on {}", "biking on {}"),
    "riding horse": ("riding {}", "riding on {}", "sitting on {}", "on the back of {}"),
    "riding motorcycle": ("riding {}", "driving {}", "racing on {}", "speeding on {}"),
    "riding skateboard": (
        "riding {}",
        "skating on {}",
        "skateboarding on {}",
        "standing on {}",
        "doing a trick on {}",
        "performing a trick on {}",
    ),
    "riding surfboard": ("riding {}", "surfing on {}", "standing on {}", "riding a wave on {}"),
    "playing ball": (
        "playing with {}",
        "kicking {}",
        "with {}",
        "playing soccer with {}",
        "playing football with {}",
        "playing a game with {}",
    ),
    "playing frisbee": (
        "playing with {}",
        "throwing {}",
        "catching {}",
        "tossing {}",
        "playing catch with {}",
        "playing a game with {}",
    ),
    "dog playing ball": ("playing with {}", "fetching {}", "with {}"),
    "dog playing frisbee": ("playing with {}", "catching {}", "fetching {}", "jumping for {}"),
    "dog playing stick": (
        "playing with {}",
        "carrying {}",
        "holding {} in its mouth",
        "with {} in its mouth",
    ),
    "holding umbrella": (
        "holding {}",
        "carrying {}",
        "under {}",
        "with {}",
        "standing under {}",
        "holding {} over the head",
    ),
    "holding kite": (
        "holding {}",
        "flying {}",
        "playing with {}",
        "with {}",
        "pulling {}",
        "with {} in hand",
    ),
    "holding ball": ("holding {}", "carrying {}", "with {} in the hands", "holding up {}"),
    "holding surfboard": (
        "holding {}",
        "carrying {}",
        "with {}",
        "standing with {}",
        "with {} under the arm",
    ),
    "chasing cat": ("chasing {}", "running after {}", "following {}"),
    "chasing bird": ("chasing {}", "running after {}", "jumping at {}"),
    "chasing ball": ("chasing {}", "running after {}", "fetching {}"),
}
"""Phrases for "action companion", or for one subject alone, "subject action companion"."""
FINITE_RELATIONS: dict[str, tuple[str, ...]] = {
    "riding bicycle": ("rides {}", "rides on {}", "pedals {}", "bikes on {}"),
    "riding horse": ("rides {}", "rides on {}", "sits on {}"),
    "riding motorcycle": ("rides {}", "drives {}", "races on {}"),
    "riding skateboard": ("rides {}", "skates on {}", "does a trick on {}", "performs a trick on {}"),
    "riding surfboard": ("rides {}", "surfs on {}", "rides a wave on {}"),
    "playing ball": ("plays with {}", "kicks {}", "plays soccer with {}"),
    "playing frisbee": ("plays with {}", "throws {}", "catches {}", "tosses {}"),
    "dog playing ball": ("plays with {}", "fetches {}"),
    "dog playing frisbee": ("plays with {}", "catches {}", "fetches {}"),
    "dog playing stick": ("plays with {}", "carries {}", "has {} in its mouth", "holds {}"),
    "holding umbrella": ("holds {}", "carries {}", "stands under {}", "holds {} over the head"),
    "holding kite": ("holds {}", "flies {}", "plays with {}"),
    "holding ball": ("holds {}", "carries {}", "holds up {}"),
    "holding surfboard": ("holds {}", "carries {}", "stands with {}", "carries {} under the arm"),
    "chasing cat": ("chases {}", "runs after {}", "follows {}"),
    "chasing bird": ("chases {}", "runs after {}", "jumps at {}"),
    "chasing ball": ("chases {}", "runs after {}", "fetches {}"),
}
