// All texts of the page, in English and Chinese, and the two ways to put them in: `say` and
// `sayAttribute`. Both remember what was said where, so that the language can be switched while a
// conversation or an upload goes on.

const s = (n, one, many) => (n === 1 ? `1 ${one}` : `${n} ${many}`);
const took = (seconds) => (seconds === undefined ? "" : `${seconds.toFixed(1)} s`);

const WORDS = {
  en: {
    skip: "Skip to the content",
    library: "Library", moments: "Moments", answer: "Answer", player: "Player", uploads: "Uploads",
    choose_library: "Library", choose_model: "Model", shortcuts: "Keyboard shortcuts",
    add_videos: "Add videos", box: "What do you want to see or know?", ask: "Ask",
    box_moment: "Ask about this moment", box_video: "Search or ask in this video",
    search_by_image: "Search with a picture", remove_image: "Remove the picture", remove: "Remove",
    filters: "Filters", filter_video: "Video name", filter_video_hint: "holiday, *.mov",
    filter_text: "Words in subtitles", filter_text_hint: "spoken words", filter_longer: "Longer than (min)",
    filter_shorter: "Shorter than (min)", filter_after: "Added from", filter_before: "Added before",
    chip_video: ({ video, value }) => (value ? `name: ${value}` : `Only ${video}`),
    chip_clip: ({ video, time }) => `Only ${time} of ${video}`,
    chip_text: ({ value }) => `says “${value}”`, chip_min_minutes: ({ value }) => `over ${value} min`,
    chip_max_minutes: ({ value }) => `under ${value} min`, chip_after: ({ value }) => `from ${value}`, chip_before: ({ value }) => `before ${value}`,
    drop_here: "Drop videos to add them, or a picture to search with it",
    // results
    found: ({ n, videos }) => `${s(n, "moment", "moments")} in ${s(videos, "video", "videos")}`,
    play_moment: ({ video, time }) => `Play ${video} from ${time}`, score_hint: "How well the best frame fits, from 0 to 1",
    ask_moment: "Ask about this moment", ask_video: "Ask about this video", copy_link: "Copy link", link_copied: "The link is copied.", copy_answer: "Copy", answer_copied: "The answer and its sources are copied.",
    more_moments: "More moments", more_strips: ({ n }) => `${s(n, "more video", "more videos")}`,
    heat_label: ({ video }) => `Relevance over time in ${video}`,
    nothing_found: "Nothing fits", nothing_found_next: "Try other words, or take a filter away.",
    search_failed: "The search did not work", try_again: "Try again",
    not_a_picture: ({ name }) => `${name} is not a picture that this browser can read.`,
    // answer
    follow_up: "Ask a follow-up question", fold: "Collapse", close_answer: "Close the answer", stop: "Stop",
    thinking_search: "Searching the library", thinking_look: ({ n }) => (n ? `Looking at ${s(n, "moment", "moments")}` : "Thinking"),
    thinking_engine: ({ detail }) => `The answering model is not ready yet${detail ? ` (${detail})` : ""}. Your question is asked as soon as it is; search works meanwhile.`,
    understood: ({ query }) => `Understood as: ${query}`, took: ({ seconds }) => took(seconds), stopped: "Stopped.",
    no_answer: "The model gave no answer. Ask in other words.", no_source: ({ seconds }) => `${took(seconds)} · No moment is cited.`,
    sources: "Sources", also_seen: ({ n }) => `Also looked at ${s(n, "moment", "moments")}`, also_seen_label: "Also looked at",
    play_source: ({ n, video, time }) => `Play source ${n}: ${video}, ${time}`,
    answer_failed: ({ message }) => `No answer: ${message}`, answer_broke: ({ message }) => `The answer broke off: ${message}`,
    hint: "Typing finds moments. Enter asks for an answer.",
    // player
    play: "Play", pause: "Pause", mute: "Mute", captions: "Subtitles", speed: "Speed", fullscreen: "Full screen", screen: "Video",
    screen_of: ({ video }) => `Video ${video}; space plays and pauses`, scene_before: "Scene before", scene_after: "Next scene",
    close_player: "Close the player", timeline: "Timeline", start: "Start", end: "End", download: "Download", export: "Export clip",
    play_scene: ({ n, time }) => `Scene ${n}, ${time}`, scenes: ({ n }) => s(n, "scene", "scenes"),
    note_clip: "This browser cannot play the file itself, so you see a clip of this moment, converted by the server.",
    note_frames: "This video cannot be played here. You see its kept frames, two a second.",
    player_problem: ({ message }) => `This video cannot be opened: ${message}`,
    cut_form: "Write times as 1:23.5 or in seconds.", cut_range: ({ end }) => `The start must lie before the end, and the end not beyond ${end}.`,
    cut_long: ({ n }) => `A clip can be ${n} seconds long at most.`,
    words: ({ n }) => `Subtitles (${n})`, about_file: "About the file", length: "Length", picture: "Picture", codec: "Codec", size: "Size",
    added: "Added", download_file: "Download the file",
    // library
    library_size: ({ n, length }) => `${s(n, "video", "videos")} · ${length}`, open_video: ({ video }) => `Open ${video}`,
    order: "Order", order_newest: "Newest first", order_name: "By name", order_longest: "Longest first",
    file_away: "The file is away", file_changed: "The file has changed", more_videos: ({ n }) => s(n, "more video", "more videos"),
    empty_library: "Your library is empty", empty_library_next: "Drop videos anywhere on this page. They stay on this server.",
    empty_library_cli: "Or take in a whole folder:", library_failed: "The library cannot be shown",
    failures: ({ n }) => `${s(n, "file", "files")} could not be taken in`,
    delete: "Delete", delete_label: ({ video }) => `Delete ${video}`, delete_title: "Take this video out of the library?",
    delete_text: "Its scenes and frames are removed. The file itself stays where it is.",
    delete_uploaded: "Its scenes and frames are removed, and the uploaded file with them.",
    delete_do: "Take it out", deleted: ({ video }) => `${video} is out of the library.`, cancel: "Cancel", close: "Close",
    // uploads
    waiting: "Waiting", queued: "Waiting to be taken in", uploading: ({ percent, size }) => `Sending, ${percent} % of ${size}`,
    ingesting: ({ percent }) => `Finding scenes, ${percent} %`, ingested: "Ready to search", open: "Open", dismiss: "Dismiss",
    upload_too_large: ({ size, most }) => `This file has ${size}; the server takes ${most} at most.`,
    failed_because: ({ message }) => `That did not work: ${message}`,
    // server
    key_title: "This library is locked", key_text: "Enter the key that its owner gave you. It is kept until you close this tab.",
    key_wrong: "The server does not accept that key.", key: "Key", open_library: "Open",
    engine_ready: "Ready to answer", engine_starting: ({ detail }) => `Model starting${detail ? `: ${detail}` : ""}`,
    engine_failed: ({ detail }) => `Search only: the model failed${detail ? `: ${detail}` : ""}`, engine_unreachable: "Not connected",
    error_unreachable: "The server cannot be reached. Check that `vidqa serve` runs, then try again.",
    error_status: ({ status }) => `The server answered with an error (${status}).`, error_too_large: "That is more than the server takes at once.",
    error_upload_broke: "The connection broke while sending. Send the file again.", error_broke_off: "The answer broke off before its end. Ask again.",
    // keys
    key_box: "Go to the box", key_ask: "Ask, or play the card", key_cards: "Move through the cards", key_close: "Close, or clear",
    key_play: "Play and pause", key_skip: "Five seconds back or on", key_scene: "Scene before or next", key_volume: "Louder or softer (player)",
    key_mute: "Mute", key_captions: "Subtitles", key_fullscreen: "Full screen", key_help: "These shortcuts",
  },
  zh: {
    skip: "跳到内容",
    library: "视频库", moments: "片段", answer: "回答", player: "播放器", uploads: "上传",
    choose_library: "视频库", choose_model: "模型", shortcuts: "键盘快捷键",
    add_videos: "添加视频", box: "想看什么，想问什么？", ask: "提问",
    box_moment: "就这个片段提问", box_video: "在这个视频中搜索或提问",
    search_by_image: "用图片搜索", remove_image: "移除图片", remove: "移除",
    filters: "筛选", filter_video: "视频名称", filter_video_hint: "例如：假期、*.mov",
    filter_text: "字幕中的词", filter_text_hint: "说过的话", filter_longer: "长于（分钟）",
    filter_shorter: "短于（分钟）", filter_after: "添加日期从", filter_before: "添加日期早于",
    chip_video: ({ video, value }) => (value ? `名称：${value}` : `仅限 ${video}`),
    chip_clip: ({ video, time }) => `仅限 ${video} 的 ${time}`,
    chip_text: ({ value }) => `字幕含“${value}”`, chip_min_minutes: ({ value }) => `长于 ${value} 分钟`,
    chip_max_minutes: ({ value }) => `短于 ${value} 分钟`, chip_after: ({ value }) => `从 ${value} 起`, chip_before: ({ value }) => `早于 ${value}`,
    drop_here: "放下视频即可添加，放下图片即可用它搜索",
    found: ({ n, videos }) => `${videos} 个视频中的 ${n} 个片段`,
    play_moment: ({ video, time }) => `播放 ${video} 的 ${time}`, score_hint: "最佳画面的匹配程度，0 到 1",
    ask_moment: "就此片段提问", ask_video: "就此视频提问", copy_link: "复制链接", link_copied: "链接已复制。", copy_answer: "复制", answer_copied: "回答及其来源已复制。",
    more_moments: "更多片段", more_strips: ({ n }) => `还有 ${n} 个视频`,
    heat_label: ({ video }) => `${video} 各时刻的相关度`,
    nothing_found: "没有匹配的片段", nothing_found_next: "换个说法，或去掉一个筛选条件。",
    search_failed: "搜索失败", try_again: "重试",
    not_a_picture: ({ name }) => `浏览器无法读取图片 ${name}。`,
    follow_up: "继续追问", fold: "收起", close_answer: "关闭回答", stop: "停止",
    thinking_search: "正在搜索视频库", thinking_look: ({ n }) => (n ? `正在查看 ${n} 个片段` : "正在思考"),
    thinking_engine: ({ detail }) => `回答模型尚未就绪${detail ? `（${detail}）` : ""}。就绪后会立即提问，此时仍可搜索。`,
    understood: ({ query }) => `理解为：${query}`, took: ({ seconds }) => took(seconds), stopped: "已停止。",
    no_answer: "模型没有给出回答，请换个说法。", no_source: ({ seconds }) => `${took(seconds)} · 没有引用任何片段。`,
    sources: "来源", also_seen: ({ n }) => `另外查看了 ${n} 个片段`, also_seen_label: "另外查看的片段",
    play_source: ({ n, video, time }) => `播放来源 ${n}：${video}，${time}`,
    answer_failed: ({ message }) => `未能回答：${message}`, answer_broke: ({ message }) => `回答中断：${message}`,
    hint: "输入即可查找片段，按回车键提问。",
    play: "播放", pause: "暂停", mute: "静音", captions: "字幕", speed: "速度", fullscreen: "全屏", screen: "视频",
    screen_of: ({ video }) => `视频 ${video}；按空格键播放或暂停`, scene_before: "上一场景", scene_after: "下一场景",
    close_player: "关闭播放器", timeline: "时间轴", start: "开始", end: "结束", download: "下载", export: "导出片段",
    play_scene: ({ n, time }) => `场景 ${n}，${time}`, scenes: ({ n }) => `${n} 个场景`,
    note_clip: "浏览器无法播放原文件，这里显示的是服务器转换的片段。",
    note_frames: "此视频无法在这里播放，下面是保留的画面，每秒两幅。",
    player_problem: ({ message }) => `无法打开此视频：${message}`,
    cut_form: "时间请写成 1:23.5 或秒数。", cut_range: ({ end }) => `开始须早于结束，结束不得超过 ${end}。`,
    cut_long: ({ n }) => `片段最长 ${n} 秒。`,
    words: ({ n }) => `字幕（${n}）`, about_file: "文件信息", length: "时长", picture: "画面", codec: "编码", size: "大小",
    added: "添加于", download_file: "下载文件",
    library_size: ({ n, length }) => `${n} 个视频 · ${length}`, open_video: ({ video }) => `打开 ${video}`,
    order: "排序", order_newest: "最新优先", order_name: "按名称", order_longest: "最长优先",
    file_away: "文件不在原处", file_changed: "文件已更改", more_videos: ({ n }) => `还有 ${n} 个视频`,
    empty_library: "视频库还是空的", empty_library_next: "把视频拖到此页面任意位置即可。视频只保存在这台服务器上。",
    empty_library_cli: "或导入整个文件夹：", library_failed: "无法显示视频库",
    failures: ({ n }) => `${n} 个文件未能导入`,
    delete: "删除", delete_label: ({ video }) => `删除 ${video}`, delete_title: "将此视频移出视频库？",
    delete_text: "其场景和画面会被移除，文件本身保留在原处。",
    delete_uploaded: "其场景和画面会被移除，上传的文件也一并删除。",
    delete_do: "移出", deleted: ({ video }) => `${video} 已移出视频库。`, cancel: "取消", close: "关闭",
    waiting: "等待中", queued: "等待导入", uploading: ({ percent, size }) => `正在发送，${size} 的 ${percent}%`,
    ingesting: ({ percent }) => `正在分析场景，${percent}%`, ingested: "可以搜索了", open: "打开", dismiss: "移除",
    upload_too_large: ({ size, most }) => `文件大小为 ${size}，服务器最多接受 ${most}。`,
    failed_because: ({ message }) => `操作失败：${message}`,
    key_title: "此视频库已上锁", key_text: "请输入管理员给您的密钥。关闭标签页后不再保留。",
    key_wrong: "服务器不接受该密钥。", key: "密钥", open_library: "打开",
    engine_ready: "可以提问", engine_starting: ({ detail }) => `模型启动中${detail ? `：${detail}` : ""}`,
    engine_failed: ({ detail }) => `仅可搜索，模型启动失败${detail ? `：${detail}` : ""}`, engine_unreachable: "未连接",
    error_unreachable: "无法连接服务器。请确认 `vidqa serve` 正在运行，然后重试。",
    error_status: ({ status }) => `服务器返回错误（${status}）。`, error_too_large: "内容超出服务器一次可接受的大小。",
    error_upload_broke: "发送时连接中断，请重新发送。", error_broke_off: "回答中途断开，请重新提问。",
    key_box: "转到输入框", key_ask: "提问，或播放所选卡片", key_cards: "在卡片间移动", key_close: "关闭或清除",
    key_play: "播放 / 暂停", key_skip: "后退或前进五秒", key_scene: "上一或下一场景", key_volume: "调节音量（播放器）",
    key_mute: "静音", key_captions: "字幕", key_fullscreen: "全屏", key_help: "显示快捷键",
  },
};

const NAMES = { en: "English", zh: "中文" };
const CHOICE = "vidqa-language";
let language = localStorage.getItem(CHOICE) ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
if (!(language in WORDS)) language = "en";

const values = new WeakMap(); // node -> {place: values}, where place is "text" or an attribute

export function t(key, given = {}) {
  const words = WORDS[language][key] ?? WORDS.en[key] ?? key;
  return typeof words === "function" ? words(given) : words;
}

export const say = (node, key, given) => put(node, "text", key, given);
export const sayAttribute = (node, name, key, given) => put(node, name, key, given);

function put(node, place, key, given) {
  node.setAttribute(place === "text" ? "data-t" : `data-t-${place}`, key);
  values.set(node, { ...values.get(node), [place]: given });
  const words = t(key, given);
  if (place !== "text") node.setAttribute(place, words);
  // The same words again would be read out again.
  else if (node.textContent !== words) node.textContent = words;
  return node;
}

/** Says again all that has been said, and what the markup of index.html wants to be said. */
export function sayAll() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("*"))
    for (const { name, value } of [...node.attributes]) {
      if (!/^data-t(-|$)/.test(name)) continue;
      const place = name === "data-t" ? "text" : name.slice("data-t-".length);
      put(node, place, value, values.get(node)?.[place]);
    }
  const button = document.getElementById("language");
  const other = language === "en" ? "zh" : "en";
  button.textContent = NAMES[other];
  button.lang = other === "zh" ? "zh-Hans" : "en";
}

export function nextLanguage() {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem(CHOICE, language);
  sayAll();
}
