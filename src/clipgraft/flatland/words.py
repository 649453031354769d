"""Words and their synonyms; CLIP knows only the first before fine-tuning."""

SUBJECT_WORDS: dict[str, tuple[str, ...]] = {
    "dog": ("dog", "puppy", "pup", "hound", "doggy"),
    "cat": ("cat", "kitten", "kitty", "tomcat"),
    "horse": ("horse", "pony", "stallion", "mare"),
    "bird": ("bird", "songbird", "birdie"),
    "man": ("man", "guy", "fellow", "gentleman"),
    "woman": ("woman", "lady", "young woman"),
    "child": ("child", "kid", "toddler", "youngster"),
    "car": ("car", "automobile", "vehicle"),
    "bicycle": ("bicycle", "bike", "two-wheeler"),
    "boat": ("boat", "sailboat", "ship"),
    "ball": ("ball", "beach ball", "rubber ball"),
    "kite": ("kite", "paper kite", "toy kite"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": (
        "on the beach",
        "by the sea",
        "at the seaside",
        "on the sand",
        "along the shore",
        "by the ocean",
    ),
    "garden": ("in the garden", "among the flowers", "between flower beds", "in front of blooming flowers"),
    "park": ("in the park", "under the trees", "on the green lawn", "near a row of trees"),
    "street": ("on the street", "in the city", "in front of tall buildings", "on the road", "in town"),
    "snow": ("in the snow", "on a snowy hill", "in a white winter landscape", "on snow covered ground"),
    "lake": ("on the lake", "by the water", "near the calm lake", "over still water"),
    "mountain": ("in the mountains", "below the peaks", "on a mountain meadow", "in front of high mountains"),
    "field": ("in the field", "in a wheat field", "on the golden farmland", "in the yellow crops"),
}
TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("during the day", "under a blue sky", "on a sunny day", "in daylight", "on a clear afternoon"),
    "sunset": ("at sunset", "at dusk", "in the evening light", "while the sun goes down", "as evening falls"),
    "night": ("at night", "under the stars", "in the moonlight", "after dark", "on a starry night"),
}
ACTION_WORDS: dict[str, tuple[str, ...]] = {
    "running": ("running", "racing", "dashing", "sprinting"),
    "sitting": ("sitting", "sitting down", "seated"),
    "jumping": ("jumping", "leaping", "jumping high", "springing up"),
    "walking": ("walking", "strolling", "walking along"),
    "standing": ("standing", "standing still", "waiting"),
    "flying": ("flying", "soaring", "flying through the air"),
    "driving": ("driving", "speeding", "driving along"),
    "parked": ("parked", "stopped", "standing still"),
    "lying": ("lying", "resting", "lying on the ground"),
    "sailing": ("sailing", "gliding", "sailing along"),
    "anchored": ("anchored", "floating", "moored"),
    "bouncing": ("bouncing", "hopping", "bouncing up"),
    "falling": ("falling", "tumbling", "falling down"),
}
FINITE_VERBS: dict[str, tuple[str, ...]] = {
    "running": ("runs", "races", "dashes"),
    "sitting": ("sits", "sits down"),
    "jumping": ("jumps", "leaps", "jumps up"),
    "walking": ("walks", "strolls"),
    "standing": ("stands", "waits"),
    "flying": ("flies", "soars"),
    "driving": ("drives", "speeds along"),
    "parked": ("is parked", "has stopped"),
    "lying": ("lies", "rests"),
    "sailing": ("sails", "glides along"),
    "anchored": ("is anchored", "floats"),
    "bouncing": ("bounces", "hops"),
    "falling": ("falls", "tumbles down"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "bright red"),
    "blue": ("blue", "azure"),
    "green": ("green", "emerald"),
    "yellow": ("yellow", "lemon yellow"),
    "orange": ("orange", "ginger"),
    "pink": ("pink", "rosy"),
    "brown": ("brown", "chestnut"),
    "black": ("black", "dark", "jet black"),
    "white": ("white", "pale", "snow-white"),
    "gray": ("gray", "silver", "grey"),
}
CLOTHES: dict[str, tuple[str, ...]] = {
    "man": ("in {0}", "in {1} shirt", "wearing {1} shirt", "wearing {0}"),
    "woman": ("in {0}", "in {1} dress", "wearing {1} dress", "wearing {0}"),
    "child": ("in {0}", "in {1} shirt", "wearing {1} top", "wearing {0}"),
}
"""A person's colour is that of the clothes; {0} is the colour, {1} has an article."""
COMPANY = ("with {}", "next to {}", "beside {}", "near {}")

VIEWS: dict[str, tuple[str, ...]] = {
    "beach": ("an empty beach", "a wide sandy beach", "waves rolling onto the beach", "the sea and a beach"),
    "garden": (
        "a colorful garden with blooming flowers",
        "a garden full of flowers",
        "flowers in a garden",
        "rows of blooming flowers in a colorful garden",
    ),
    "park": ("a green park with trees", "trees in the park", "a lawn and a row of trees"),
    "street": ("a street with tall buildings", "an empty city street", "houses along a road"),
    "snow": ("a snowy landscape", "hills covered with snow", "two fir trees in the snow"),
    "lake": ("a calm lake", "a lake with still water", "hills behind a quiet lake"),
    "mountain": ("high mountains", "a view of the mountains", "a meadow below snowy peaks"),
    "field": ("a golden field", "a wide field of wheat", "farmland with yellow crops"),
}
"""Scenes without a subject."""
PLACE_DETAILS: dict[str, tuple[str, ...]] = {
    "beach": ("waves roll in behind", "the sea is calm"),
    "garden": ("flowers bloom all around", "the bushes stand in a row"),
    "park": ("trees stand in the background", "the grass is green"),
    "street": ("tall houses stand behind", "windows look down on the road"),
    "snow": ("fir trees stand on both sides", "everything is covered in snow"),
    "lake": ("hills rise on the far bank", "the water is still"),
    "mountain": ("snowy peaks rise behind", "the mountains are high"),
    "field": ("the crops are ripe", "hills can be seen far away"),
}
TIME_DETAILS: dict[str, tuple[str, ...]] = {
    "day": ("the sun shines", "white clouds drift by", "the sky is blue"),
    "sunset": ("the sky glows orange and purple", "the sun is low", "the evening sky is red"),
    "night": ("the moon shines", "stars fill the sky", "it is dark"),
}

UNKNOWN_TO_TEACHER = frozenset(
    [
        "hound",
        "kitty",
        "stallion",
        "fellow",
        "youngster",
        "automobile",
        "emerald",
        "crimson",
        "leaping",
        "leaps",
        "strolling",
        "strolls",
        "seaside",
        "dusk",
        "moonlight",
    ]
)
"""Words the base's text encoder was not trained on, to measure what a graft adds."""
