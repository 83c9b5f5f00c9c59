"""C-STANCE in small: the stance of a short Chinese text towards one object, A, B or C.

    判断文本对对象的态度：A.支持，B.反对，C.中立。
    文本：
    今天我觉得茶真好。但是咖啡太差了。
    对象：
    咖啡
    态度：                                      -> B

Most texts speak of two objects, so that the object asked for decides.
"""

from __future__ import annotations

from cl_mofo.mini.dice import Dice

NAME = "C-STANCE"
LETTERS = "ABC"
STANCES = ("支持", "反对", "中立")
OBJECTS = (
    *("茶", "咖啡", "手机", "地铁", "电影", "足球", "网课", "外卖"),
    *("新规", "烟花", "公园", "火车", "游戏", "广告", "电动车", "短视频"),
)
CLAIMS = (
    ("{o}真好", "我喜欢{o}", "{o}值得推荐", "大家都需要{o}", "{o}让生活更好"),
    ("{o}太差了", "我讨厌{o}", "{o}浪费时间", "没有人需要{o}", "{o}让人失望"),
    ("我看到了{o}", "有人问{o}在哪里", "新闻说到{o}", "明天有{o}", "这里也有{o}"),
)
OPENINGS = ("", "今天", "昨天", "早上", "晚上", "周末", "在北京", "在上海", "朋友说", "老师说")
LINKS = ("。", "。但是", "。另外", "，不过")


def _text(dice: Dice, objects: list[str], stances: list[int]) -> str:
    claims = [
        dice.pick(CLAIMS[stance]).format(o=name)
        for name, stance in zip(objects, stances, strict=True)
    ]
    return dice.pick(OPENINGS) + dice.pick(LINKS).join(claims) + "。"


def record(dice: Dice, index: int) -> dict[str, str]:
    """Return the record `index` of a split: its class is `index` modulo 3."""
    stance = index % 3
    asked, other = dice.some(OBJECTS, 2)
    pairs = [(asked, stance)]
    if dice.chance(0.6):
        pairs = dice.shuffled([*pairs, (other, (stance + dice.number(1, 2)) % 3)])
    text = _text(dice, [name for name, _ in pairs], [which for _, which in pairs])
    prompt = (
        f"判断文本对对象的态度：A.支持，B.反对，C.中立。\n文本：\n{text}\n对象：\n{asked}\n态度："
    )
    return {"prompt": prompt, "answer": LETTERS[stance]}


def document(dice: Dice) -> str:
    """Return a text of the world: opinions, and in words whose they are."""
    objects = dice.some(OBJECTS, dice.number(1, 3))
    stances = [dice.number(0, 2) for _ in objects]
    text = _text(dice, objects, stances)
    said = [
        dice.pick(("这段话对{o}的态度是{s}。", "作者对{o}是{s}。", "对象{o}：{s}。")).format(
            o=name, s=STANCES[stance]
        )
        for name, stance in zip(objects, stances, strict=True)
    ]
    return f"文本：{text}\n" + "".join(dice.shuffled(said))
