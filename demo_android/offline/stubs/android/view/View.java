package android.view;

public class View {
    public static final int VISIBLE = 0;
    public static final int GONE = 8;

    public interface OnClickListener {
        void onClick(View view);
    }

    public final <T extends View> T findViewById(int id) { return null; }
    public void setVisibility(int visibility) {}
    public void setKeepScreenOn(boolean on) {}
    public void setEnabled(boolean enabled) {}
    public void setOnClickListener(OnClickListener listener) {}
}
