"""The report's words in English and Chinese: the page holds both, and its script exchanges them."""

from collections.abc import Iterable

from src.charts import Text

CHINESE = {
    # headings and controls
    "Scores": "得分",
    "Charts": "图表",
    "Single pictures": "单张图片",
    "Over-fitting gap": "过拟合差距",
    "Mistakes": "常见错误",
    "Pictures": "图片",
    "All captions": "全部描述",
    "Settings": "设置",
    "Contents": "目录",
    "Warnings": "警告",
    "Score": "得分",
    "Setting": "设置项",
    "Picture": "图片",
    "Filter captions and file names": "筛选描述和文件名",
    "Sort pictures": "图片排序",
    "Groups of pictures": "图片分组",
    "Sort by the score of": "按谁的得分排序",
    "in groups": "按分组",
    "lowest first": "从低到高",
    "highest first": "从高到低",
    "all": "全部",
    "best": "最好",
    "worst": "最差",
    "random": "随机",
    "others ahead": "其余领先",
    "{name} ahead": "{name} 领先",
    "only where captions differ": "仅看描述不同的",
    "Earlier": "上一页",
    "Later": "下一页",
    "Pages": "翻页",
    "{a} of {b}": "{a} / {b}",
    "{a}–{b} of {n}": "第 {a}–{b} 张，共 {n} 张",
    "none": "无",
    # what was evaluated
    "Evaluation of {name}": "{name} 的评测",
    "{first} beside {others}": "{first} 与 {others}",
    "{n} others": "另外 {n} 个",
    "captioner {name}": "模型 {name}",
    "captions of {name}": "{name} 中的描述",
    "baseline {name}": "基线 {name}",
    "{n} pictures": "{n} 张图片",
    "each reference left out in turn": "依次留出每条参考",
    "the others are held against it": "其余与之比较",
    # scores
    "× 100 where a score is a share": "比例类得分 × 100",
    "difference": "差值",
    "difference of {name}": "{name} 的差值",
    "* more than the chance of these pictures (approximate randomization, p < 0.05 after Holm’s correction); "
    "python -m src.compare gives intervals.": "* 超出抽取图片的偶然（近似随机化检验，Holm 校正后 p < 0.05）；"
    "置信区间见 python -m src.compare。",
    "not computed": "未计算",
    "Not computed": "未计算",
    "no reason given": "未说明原因",
    "({names} only)": "（仅 {names}）",
    # charts
    "Score of single pictures": "单张图片的得分",
    "{score} of single pictures": "单张图片的 {score}",
    "pictures": "图片数",
    "{name}: median {middle}, middle half {low} to {high}": "{name}：中位数 {middle}，中间一半 {low} 至 {high}",
    "Lengths of captions": "描述的长度",
    "words": "词数",
    "characters": "字数",
    "references, mean": "参考，均值",
    "{name}: {own} on average": "{name}：平均 {own}",
    "{score} by length of caption": "各描述长度的 {score}",
    "Mean of the captions of a length; lengths with fewer than {n} are left out": "该长度描述的均值；"
    "不足 {n} 条的长度不画",
    "Cross-entropy by epoch": "逐轮交叉熵",
    "Loss by epoch": "逐轮损失",
    "epoch": "轮次",
    "nats a token": "奈特 / 词",
    "loss": "损失",
    "training": "训练",
    "validation": "验证",
    "gap": "差距",
    "dotted: training, solid: validation": "点线：训练，实线：验证",
    "{name}: gap {gap} after epoch {epoch}": "{name}：第 {epoch} 轮后差距 {gap}",
    "train/{measure} and val/{measure} of metrics.csv. Training is the mean of an epoch’s logged steps, with dropout "
    "and while the weights still move: the gap is an underestimate.": "metrics.csv 的 train/{measure} 与 "
    "val/{measure}。训练值是该轮所记录各步的均值，含 dropout，且权重仍在变化：差距被低估。",
    "train/{measure} and val/{measure} of metrics.csv. Training is the mean of an epoch’s logged steps, with dropout, "
    "label smoothing if there is any, and while the weights still move: the gap is an underestimate.": "metrics.csv 的 "
    "train/{measure} 与 val/{measure}。训练值是该轮所记录各步的均值，含 dropout 及可能的标签平滑，"
    "且权重仍在变化：差距被低估。",
    "{name}: metrics.csv has no one measure of both training and validation, so no gap is shown.": "{name}："
    "metrics.csv 中训练与验证没有同一指标，故不显示差距。",
    "train_sample/CIDEr and val/CIDEr of metrics.csv: captions of a few training pictures, generated and scored as "
    "those of validation.": "metrics.csv 的 train_sample/CIDEr 与 val/CIDEr：少量训练图片的生成描述，"
    "其生成与评分方式同验证。",
    "CIDEr of generated captions by epoch": "逐轮生成描述的 CIDEr",
    "{name}: no warning of over-fitting": "{name}：无过拟合警告",
    "{name}: warned of over-fitting after epoch {epoch}": "{name}：第 {epoch} 轮后出现过拟合警告",
    "warning": "警告",
    "In numbers": "数值",
    # mistakes
    "Said wrongly": "说错的词",
    "Left out": "漏掉的词",
    "of captions that say the word, those where no reference does": "说该词的描述中，参考都没有该词的",
    "of pictures most of whose references say the word, those whose caption does not": "多数参考有该词的图片中，"
    "描述没有该词的",
    # people, and training's own words
    "People in captions": "描述中的人物",
    "A picture’s label is what most of its references say, of those that say any; not what is so. “mixed”: several; "
    "“neutral”: somebody, without saying which; “nothing”: nobody.": "图片的标签是其多数参考（仅计提及者）所说，"
    "而非事实。“不一”：多种；“中性”：有人但未说明；“未提及”：无人。",
    "Words of people": "人物用词",
    "% of sentences that say one": "说到该词的句子所占 %",
    "references": "参考",
    "captions": "描述",
    "woman": "女人",
    "man": "男人",
    "girl": "女孩",
    "boy": "男孩",
    "child": "儿童",
    "baby": "婴儿",
    "old woman": "老年女性",
    "old man": "老年男性",
    "old person": "老人",
    "young": "青年",
    "person": "人",
    "gender": "性别",
    "age": "年龄",
    "women": "女",
    "men": "男",
    "adult": "成人",
    "old": "老人",
    "mixed": "不一",
    "neutral": "中性",
    "nothing": "未提及",
    "{name}: pictures": "{name}：图片",
    "{name}: errors": "{name}：错误",
    "{name}: scores": "{name}：得分",
    "{name}: what goes with errors": "{name}：与错误同现的事物",
    "rows: the picture’s label; columns: what the caption says": "行：图片的标签；列：描述所说",
    "captions that say another value; {values} are {references} by labels, {captions} in captions": "描述说成另一种的；"
    "{values} 在标签中为 {references}，在描述中为 {captions}",
    "said of none": "参考未提及而描述提及",
    "wrong": "说错",
    "95 % interval": "95 % 区间",
    "* the 95 % interval of the difference leaves out 0 (bootstrap over pictures, no correction)": "* 差异的 95 % 区间"
    "不含 0（对图片自助抽样，未作校正）",
    "groups": "分组",
    "first": "前者",
    "second": "后者",
    "of captions that say the concept, those with the wrong word": "说到该事物的描述中，用错词的",
    "label → said": "标签 → 描述",
    "Word for word from training": "与训练描述逐字相同",
    "Captions that stand so among the training captions; people write the same of like pictures too, so that their "
    "references are what captions are to be seen against.": "在训练描述中逐字出现的描述；人们对相似图片也会写出"
    "相同的话，故应与参考相比。",
    "In training": "训练中",
    "the longest run: words on end that stand so in one training caption, the mean": "最长连续：在某条训练描述中"
    "同样连续出现的词数，取均值",
    "captions of the same picture": "同一图片的描述",
    "word for word, %": "逐字相同，%",
    "longest run, words": "最长连续，词",
    "length, words": "长度，词",
    "Most often": "最常见的",
    "how many pictures get it, and how often it stands in training": "多少张图片得到它，以及它在训练中出现多少次",
    "caption": "描述",
    "in training": "训练中",
    # pictures
    "Point at a word, tap it, or reach it by keyboard (Tab, then ← →) to see where the model looked as it said it. "
    "Brightness is relative to the word’s own strongest region; attention spread evenly stays dim.": "指向或点按"
    "一个词，或用键盘（Tab，再按 ← →）选中它，即可看到模型说这个词时看向哪里。"
    "亮度相对于该词最强的区域；均匀分散的注意力保持暗淡。",
    "Best and worst by {score} of {name}; the random ones are drawn from the rest (seed {seed}).": "最好与最差按 "
    "{name} 的 {score}；随机图片从其余中抽取（种子 {seed}）。",
    "Drawn at random (seed {seed}).": "随机抽取（种子 {seed}）。",
    "(no words)": "（无词）",
    "Reference captions": "参考描述",
    "Scores of this picture": "该图片的得分",
    "Picture not shown:": "图片未显示：",
    "Only the first {n} of {all}; captions.tsv has all.": "仅列前 {n} 张，共 {all} 张；全部见 captions.tsv。",
    "This table needs a script, and scripts are switched off.": "此表需要脚本，而脚本已关闭。",
    # damaged pictures
    "Captions of damaged pictures": "受损图片的描述",
    "By kind and severity": "按类型与程度",
    "By severity": "按程度变化",
    "Where the score fell most": "得分下降最多的图片",
    "clean": "原图",
    "damaged": "受损",
    "mean": "均值",
    "kept": "保留",
    "damage": "损坏",
    "captioner": "模型",
    "relative mCE": "相对 mCE",
    "severity {n}": "程度 {n}",
    "severity (0: as it is)": "程度（0：原图）",
    "Families": "各类",
    "Families of {name}": "{name} 的各类",
    "Captioners, all kinds": "各模型，所有类型",
    "noise": "噪声",
    "blur": "模糊",
    "weather": "天气",
    "digital": "数字处理",
    "shift": "拍摄与转发",
    "gaussian noise": "高斯噪声",
    "shot noise": "散粒噪声",
    "impulse noise": "脉冲噪声",
    "defocus blur": "失焦模糊",
    "glass blur": "玻璃模糊",
    "motion blur": "运动模糊",
    "zoom blur": "变焦模糊",
    "snow": "雪",
    "fog": "雾",
    "brightness": "过亮",
    "contrast": "低对比度",
    "elastic transform": "弹性变形",
    "pixelate": "像素化",
    "JPEG compression": "JPEG 压缩",
    "crop": "裁切",
    "occlusion": "遮挡",
    "rotation": "旋转",
    "low resolution": "低分辨率",
    "grey": "褪色",
    "screenshot": "截屏",
    "watermark": "水印",
    "{measure} × 100. Colour: the share of the clean score that is kept, from all (green) to none (red).": "{measure} "
    "× 100。颜色：所保留的原图得分比例，从全部（绿）到没有（红）。",
    "Kinds are ImageNet-C’s, and shifts of pictures that are captioned. Intervals are over pictures (bootstrap). mCE: "
    "the error 1 − ROUGE-L, summed over severities, beside that of {name}, mean over kinds; relative mCE: likewise of "
    "what {measure} loses. 100 is as much as {name}, less is better.": "类型取自 ImageNet-C，另加图片转发中"
    "常见的变化。区间按图片自助抽样。mCE：误差 1 − ROUGE-L 按程度求和，除以 {name} 的同一数值，"
    "再对类型取均值；相对 mCE：改用 {measure} 的下降量。100 表示与 {name} 相同，越低越好。",
    "{name} does not say where it looks: occlusion hides the middle of its pictures.": "{name} 不说明看向哪里："
    "遮挡的是图片中央。",
    "Of the {n} kinds that are worst for {name}, the pictures whose caption lost most, with scores ({measure} × "
    "100).": "对 {name} 最难的 {n} 种类型中，描述得分下降最多的图片及其得分（{measure} × 100）。",
    # names of scores
    "{score} by word": "{score}（按词）",
    "exact match": "与参考完全相同",
    "objects recall": "物体召回",
    "colours recall": "颜色召回",
    "attributes recall": "属性召回",
    "counts recall": "数量召回",
    "actions recall": "动作召回",
    "objects named": "物体说对",
    "backgrounds named": "背景说对",
    "distinct words": "不同词数",
    "mean length": "平均长度",
    "length": "长度",
    "reference length": "参考长度",
    "distinct share": "不同描述占比",
    "novel share": "非训练描述占比",
    "gender error": "性别说错",
    "next token accuracy": "下一词准确率",
    "cross entropy": "交叉熵",
    "perplexity": "困惑度",
    "vocabulary share": "词表使用率",
    "confidence ece": "置信度校准误差",
    "confidence spearman": "置信度秩相关",
    "images": "图片数",
}


def both(text: str, **values: Text | int) -> Text:
    """A text of the page in both languages, with values put in; they may be in both, too.

    Raises:
        KeyError: `CHINESE` has no such text.
    """
    pairs = {key: value if isinstance(value, tuple) else (value, value) for key, value in values.items()}
    english, chinese = ({key: pair[i] for key, pair in pairs.items()} for i in (0, 1))
    return text.format(**english), CHINESE[text].format(**chinese)


def known(text: str) -> Text:
    """A name in both languages, where the Chinese is known."""
    return (text, CHINESE[text]) if text in CHINESE else text


def joined(texts: Iterable[Text]) -> Text:
    """One text of several."""
    pairs = [text if isinstance(text, tuple) else (text, text) for text in texts]
    return "; ".join(pair[0] for pair in pairs), "；".join(pair[1] for pair in pairs)
