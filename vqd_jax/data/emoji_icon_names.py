"""Icons whose names are not those of the emoji that they show, as found by looking at all of them.

Each line is `icon: name of the emoji`, or `icon:` where it shows another thing than its name says.
"""


def _table(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (line.split(":", 1) for line in text.strip().splitlines())
    return tuple((icon.strip(), name.strip()) for icon, name in pairs)


OLDER = _table("""
    a-button: a button (blood type)
    ab-button: ab button (blood type)
    b-button: b button (blood type)
    o-button: o button (blood type)
    exclamation-mark: red exclamation mark
    game-dice: game die
    grinning-cat-face: grinning cat
    kissing-cat-face: kissing cat
    person-blonde-hair: person blond hair
    person-deaf: deaf person
    person-elf: elf
    person-fairy: fairy
    person-genie: genie
    person-mage: mage
    person-merpeople: merperson
    person-superhero: superhero
    person-supervillain: supervillain
    person-vampire: vampire
    person-with-bunny-ears: people with bunny ears
    person-wrestling: people wrestling
    person-zombie: zombie
    phoenix-bird: phoenix
    piata: pinata
    pistol:
    pouting-face: enraged face
    question-mark: red question mark
    school-backpack: backpack
    smiling-cat-face-with-heart-eyes: smiling cat with heart-eyes
    up-text-button: up! button
""")  # in several sets

BLOB = _table("""
    asterisk:
    cricket: cricket game
    downwards-button:
    exclamation-mark:
    laptop: desktop computer
    question-mark:
    red-heart:
    upwards-button:
""")

EMOJIONE = _table("""
    cricket: cricket game
""")

CLASSIC = _table("""
    keyboard:
    laptop: desktop computer
    shield:
    window:
""")

STREAMLINE = _table("""
    headphone:
    japan:
    muted-speaker:
    right-anger-bubble:
    turkey:
""")

FIREFOX = _table("""
    2hearts: two hearts
    americasglobe: globe showing americas
    anguish: anguished face
    aok: ok hand
    asiaaustraliaglobe: globe showing asia-australia
    astonished:
    backwithleftwardsarrow: back arrow
    banknotedollar: dollar banknote
    banknoteeuro: euro banknote
    banknotepound: pound banknote
    banknoteyen: yen banknote
    blackpushpin: pushpin
    blackskullcrossbones: skull and crossbones
    blonde: person blond hair
    bolt: high voltage
    bookmarktab: bookmark tabs
    bow: ribbon
    bowing: person bowing
    bride: woman with veil
    bullhorn:
    bunny: rabbit face
    bunny-ears: people with bunny ears
    bunnyside: rabbit
    cat: cat face
    catside: cat
    cellphone: mobile phone
    chartdownwardstrend: chart decreasing
    chartupwardstrend: chart increasing
    chartupwardstrendyen: chart increasing with yen
    chilipepper: hot pepper
    closedmailboxlowered: closed mailbox with lowered flag
    closedmailboxraised: closed mailbox with raised flag
    confetti: confetti ball
    construct: construction worker
    construction: building construction
    contact2: busts in silhouette
    controlknob: control knobs
    couple: couple with heart
    crying: crying face
    darksunglasses: sunglasses
    desktopcomputer:
    devilhorns: smiling face with horns
    diamondshapewithdotinside: diamond with a dot
    dissapointedrelief: sad but relieved face
    dog: dog face
    dogside: dog
    doubleexclaimationmark: double exclamation mark
    down: backhand index pointing down
    dragonhead: dragon face
    dragonside: dragon
    eightspokedasterix: eight-spoked asterisk
    endwithleftwardsarrow: end arrow
    envelopedownarrowabove: envelope with arrow
    europeafricaglobe: globe showing europe-africa
    evergreen: evergreen tree
    exclaimationquestionmark: exclamation question mark
    fallingleaf: fallen leaf
    fishcakeswirl: fish cake with swirl
    fistedhand: oncoming fist
    flexbicep: flexed biceps
    fog:
    forkknife: fork and knife with plate
    frontfacingchick: front-facing baby chick
    frown: person frowning
    frownmouth: frowning face with open mouth
    gamedie:
    gma: old woman
    gpa: old man
    grimacing:
    grin:
    grineyes: grinning face with smiling eyes
    grinsquint: grinning squinting face
    grinsweat: grinning face with sweat
    grintears: face with tears of joy
    grinwide: grinning face
    grinwideeyes: grinning face with big eyes
    guapimao: person with skullcap
    guardsman: guard
    halo: smiling face with halo
    hampster: hamster
    handheldvideocamera: video camera
    hands: open hands
    handup: person raising hand
    headmassage: person getting massage
    heartarrow: heart with arrow
    heartblue:
    heartgreen: green heart
    heartpurple: purple heart
    heartribbon: heart with ribbon
    heartyellow: yellow heart
    heavyexclaimationmarksymbol:
    heavylatincross: latin cross
    heavymultiplicationsymbol: multiply
    heels: high-heeled shoe
    high5: raising hands
    highspeedtrainbulletnose: bullet train
    index: index pointing up
    japaneseangrymask: goblin
    keyboard:
    kiss:
    kissclosedeyes: kissing face with closed eyes
    kisseyes: kissing face with smiling eyes
    kissing: face blowing a kiss
    leaffluttering: leaf fluttering in wind
    left: backhand index pointing left
    leftmagnifyingglass: magnifying glass tilted left
    leopardside: leopard
    lightrail:
    lightrailcar:
    lockandkey: locked with key
    loudlycrying: loudly crying face
    manltepiececlock: mantelpiece clock
    mansshirt: t-shirt
    medicalmask: face with medical mask
    mensrunner: running shoe
    mensshoe: man's shoe
    meridianglobe: globe with meridians
    monkeyhear: hear-no-evil monkey
    monkeysee: see-no-evil monkey
    monkeyspeak: speak-no-evil monkey
    mouse: mouse face
    mouseside: mouse
    negativesquaredlatincaptiala: a button (blood type)
    negativesquaredlatincaptialb: b button (blood type)
    negativesquaredlatincaptialo: o button (blood type)
    neutral: neutral face
    nogesture: person gesturing no
    nooneunder18symbol: no one under eighteen
    nosmokingsymbol:
    notebookdecorativecover: notebook with decorative cover
    okgesture: person gesturing ok
    onarrowleftright: on! arrow
    openfilefolder:
    openmailboxlowered: open mailbox with lowered flag
    openmailboxraised: open mailbox with raised flag
    outbox: outbox tray
    perservere: persevering face
    personalcomputer: desktop computer
    phonerightarrowleft: mobile phone with arrow
    pig: pig face
    pigside: pig
    pigsnout: pig nose
    pistol:
    poo: pile of poo
    potablewatersystem: potable water
    pout:
    present: wrapped gift
    racecar: racing car
    raisedhandpartfingers: vulcan salute
    right: backhand index pointing right
    rightmagnifyingglass:
    ringingbell: bell
    saggitarius: sagittarius
    sandals: woman's sandal
    screamfear: face screaming in fear
    silhouetteohjapan: map of japan
    sixpointedstarwithdot: dotted six-pointed star
    sleuthspy: detective
    smallfrown: slightly frowning face
    smallsmile: slightly smiling face
    smileeyes: smiling face with smiling eyes
    smiletongue: face savoring food
    snowmountains: snow-capped mountain
    soonwithrightarrow: soon arrow
    speaker3soundwaves: speaker high volume
    speakercancellation: muted speaker
    speakeronesoundwave: speaker medium volume
    speechbubble: speech balloon
    spurtingwhale: spouting whale
    squaredup: up! button
    stormcloud: cloud with lightning
    studiomic: studio microphone
    sunglasses: smiling face with sunglasses
    sunraincloud: sun behind rain cloud
    sunrays: sun
    sweatsplash: sweat droplets
    swimming: person swimming
    telephonereceiver: telephone receiver
    tennisball: tennis
    thoughtbaloon: thought balloon
    ticket:
    tie: necktie
    tiger: tiger face
    tigerside: tiger
    tired: tired face
    tongueout: face with tongue
    tongueoutwink: winking face with tongue
    tongueoutwink2: squinting face with tongue
    topwithupwardsarrow: top arrow
    toykotower: tokyo tower
    tramcar:
    turban: person wearing turban
    umbrella: closed umbrella
    up:
    videocasette: videocassette
    waitress: person tipping hand
    waningbibbousmoon: waning gibbous moon
    wave: water wave
    waving: waving hand
    whiteexclaimationmark: white exclamation mark
    whitemediumstar:
    whitesunsmallcloud: sun behind small cloud
    window:
    winking: winking face
    womansshirt: woman's clothes
""")
